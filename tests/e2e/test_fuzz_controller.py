"""A hostile agent with a good certificate: ten thousand odd messages end its own streams at most, and nothing else.

Messages are made by their descriptors with values from the edges of every field. What the screen finds absurd must end
the stream with INVALID_ARGUMENT; after all the rest the stream still answers.
"""

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_agent.agent.identity import Identity
from brownout_controller.fleet.screening import Absurd, screen
from brownout_protos.v1 import fleet_pb2

from tests.e2e.test_fleet_limits import ended, served, welcomed
from tests.support.fleets import controller, identity
from tests.support.fuzz_messages import fill

INPUTS = 10_000
BATCH = 250
MESSAGE_BYTES = 200_000
Message = fleet_pb2.AgentMessage


def odd(rng: random.Random, name: str) -> fleet_pb2.AgentMessage:
    message = Message()
    while message.WhichOneof("body") is None or message.ByteSize() > MESSAGE_BYTES:
        message = Message()
        fill(message, rng)
        if message.HasField("hello"):
            message.hello.host = name  # another's name is an offence, which is counted: see the grid of identities
    return message


def is_absurd(message: fleet_pb2.AgentMessage) -> bool:
    copy = Message()
    copy.CopyFrom(message)
    try:
        screen(copy)
    except Absurd:
        return True
    return False


def batch(rng: random.Random, name: str) -> list[fleet_pb2.AgentMessage]:
    """Odd messages, of which the last is absurd in half of the batches."""
    made: list[fleet_pb2.AgentMessage] = []
    ends_absurd = rng.random() < 0.5
    while len(made) < BATCH:
        message = odd(rng, name)
        if not is_absurd(message):
            made.append(message)
        elif ends_absurd and len(made) > BATCH // 2:
            return [*made, message]
    return made


async def send(one: Identity, messages: list[fleet_pb2.AgentMessage]) -> bool:
    """Over one stream. Whether it still answered after the last of them; it is ended otherwise."""
    async with welcomed(one) as call:
        while not (asked := await call.read()).HasField("clock"):
            pass
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        stamps = {"received_boottime_ns": now_ns, "sent_boottime_ns": now_ns}
        await call.write(Message(clock=fleet_pb2.ClockReply(number=asked.clock.number, **stamps)))
        try:
            for message in messages:
                await call.write(message)
            await call.write(Message(ping=fleet_pb2.Ping(number=77)))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it was ended meanwhile; `ended` says why
        if is_absurd(messages[-1]):
            assert (await ended(call)).code() is grpc.StatusCode.INVALID_ARGUMENT
            return False
        await _ponged(call)
        return True


async def _ponged(call: Any) -> None:
    while True:
        answer = await call.read()
        assert answer is not grpc.aio.EOF, "the stream ended though nothing absurd was said"
        if answer.HasField("pong") and answer.pong.number == 77:
            return


@pytest.mark.slow
def test_ten_thousand_odd_messages_end_their_own_stream_at_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed = int(os.environ.get("BROWNOUT_SEED", random.SystemRandom().getrandbits(32)))
    print(f"BROWNOUT_SEED={seed}")

    async def story() -> None:
        rng, sent, answered, refused = random.Random(seed), 0, 0, 0
        async with controller(tmp_path / "c") as serving, asyncio.timeout(150):
            one = await identity(serving, tmp_path / "a")
            while sent < INPUTS:
                messages = batch(rng, one.membership.name)
                if await send(one, messages):
                    answered += 1
                else:
                    refused += 1
                sent += len(messages)
            await served(serving, tmp_path / "b", "app-2")
            assert set(serving.fleet.hosts) == {one.membership.name, "app-2"}
        assert answered > 0
        assert refused > 0

    asyncio.run(story())
    assert not [record.getMessage() for record in caplog.records if record.exc_info], "a message was not understood"
