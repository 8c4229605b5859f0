"""One stream to a controller, over a channel of its own: a channel keeps the certificate that it was opened with."""

import asyncio
import datetime
from dataclasses import dataclass
from typing import Any

import grpc
from brownout_protos.v1 import fleet_pb2, fleet_pb2_grpc

from brownout_agent.agent.identity import Identity
from brownout_agent.agent.trust import SERVER_NAME, controllers_of

CHANNEL_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.http2.ping_timeout_ms", 3_000),  # gRPC's own is a minute, in which a lease runs out six times
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 256 * 1024),
)
_WELCOME_WITHIN_S = 15.0
_DRAIN_S = 5.0


@dataclass(slots=True)
class Stream:
    """A welcomed stream."""

    where: str
    channel: grpc.aio.Channel
    stub: "fleet_pb2_grpc.FleetAsyncStub"
    call: Any
    welcome: fleet_pb2.Welcome
    renewed: bool = False
    retired: bool = False
    _writing: bool = False

    @classmethod
    async def open(cls, identity: Identity, where: str, hello: fleet_pb2.Hello) -> "Stream":
        """Connect to a controller at HOST:PORT, say who this is, and wait to be welcomed.

        Raises:
            grpc.aio.AioRpcError: nobody answers, or this agent is refused.
            NotTrusted: the kept authorities lead to no controller.
            OSError: no welcome in time.
        """
        channel = _channel(identity, where)
        try:
            stub: fleet_pb2_grpc.FleetAsyncStub = fleet_pb2_grpc.FleetStub(channel)
            call = stub.Session()
            async with asyncio.timeout(_WELCOME_WITHIN_S):
                await call.write(fleet_pb2.AgentMessage(hello=hello))
                first = await call.read()
            if not isinstance(first, fleet_pb2.ControllerMessage) or first.WhichOneof("body") != "welcome":
                raise ConnectionError("the controller ended the session before a welcome")
            return cls(where, channel, stub, call, first.welcome)
        except BaseException:
            await channel.close()
            raise

    async def read(self) -> fleet_pb2.ControllerMessage | None:
        """The next message; None when the controller has ended the stream in good order.

        Raises:
            grpc.aio.AioRpcError: it ended otherwise.
        """
        message = await self.call.read()
        return message if isinstance(message, fleet_pb2.ControllerMessage) else None

    async def write(self, message: fleet_pb2.AgentMessage) -> None:
        """Write one message; there is one writer."""
        self._writing = True
        await self.call.write(message)
        self._writing = False

    async def retire(self, reading: asyncio.Task[None], writing: asyncio.Task[None]) -> None:
        """Another stream has taken over: write no more, hear the controller out, and close.

        A write is never cancelled half-way: gRPC would cancel the whole call with it, and what the controller has
        sent already would be lost.
        """
        self.retired = True
        if not self._writing:
            writing.cancel()
        await asyncio.wait((reading, writing), timeout=_DRAIN_S)
        await self.close(reading, writing)

    async def close(self, *tasks: "asyncio.Task[Any]") -> list[BaseException | Any]:
        """End it, and what works on it; what came of that."""
        for task in tasks:
            task.cancel()
        self.call.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await self.channel.close()
        return ended


def _channel(identity: Identity, where: str) -> grpc.aio.Channel:
    trusted = controllers_of(identity.authority_pem)
    credentials = grpc.ssl_channel_credentials(trusted, identity.key_pem, identity.certificate_pem)
    return grpc.aio.secure_channel(where, credentials, options=CHANNEL_OPTIONS)


def why_not(error: BaseException, identity: Identity) -> str:
    """Why there is no stream, in words that name the clock where the clock is to blame."""
    detail = str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
    now = datetime.datetime.now(datetime.UTC)
    if identity.lives_s < 0:
        return (
            f"this agent's certificate has run out by this host's clock ({now:%Y-%m-%d %H:%M} UTC). Next: if that "
            "clock is right, join again with a new token; else set the clock"
        )
    if "certificate has expired" in detail or "certificate is not yet valid" in detail:
        return (
            f"the controller's certificate is not valid at the time of this host's clock ({now:%Y-%m-%d %H:%M} UTC). "
            f"Next: compare the clock here and on the controller ({detail})"
        )
    return detail
