"""The listening side of a controller: two ports, since only enrolment may come without a certificate."""

import resource
import threading
import time
from collections.abc import Callable

import grpc
from brownout_protos.v1 import fleet_pb2_grpc

from brownout_controller.fleet.authority import Authority, KeyPair
from brownout_controller.fleet.knocks import Knocks
from brownout_controller.fleet.limits import CONNECTIONS, SERVER_OPTIONS
from brownout_controller.fleet.own_pair import OwnPair

_STOP_GRACE_S = 3.0
_REPLACE_GRACE_S = 0.1
"""See `_ShownAtAPort`. What it lets end takes microseconds."""


class FleetServer:
    """Serves `Fleet`. What it shows and trusts is read at each handshake, so both can change while it runs."""

    def __init__(self, service: fleet_pb2_grpc.FleetServicer, authority: Authority, knocks: Knocks) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        fleet_pb2_grpc.add_FleetServicer_to_server(service, self._server)
        self._shown = _Shown(authority)
        self._knocks = knocks

    async def start(self, host: str, port: int) -> tuple[int, int]:
        """Listen on `port` for agents and on the next one for enrolment; 0 picks two free ones. Returns both.

        Raises:
            OSError: an address cannot be bound.
        """
        _make_room()
        to_agents, to_new_hosts = _ShownAtAPort(self._shown.mutual), _ShownAtAPort(self._shown.enrolment)

        def knocked() -> grpc.ServerCertificateConfiguration:
            self._knocks.begin()
            return to_agents.if_new()

        mutual = grpc.dynamic_ssl_server_credentials(to_agents.shown, knocked, require_client_authentication=True)
        enrolment = grpc.dynamic_ssl_server_credentials(
            to_new_hosts.shown, to_new_hosts.if_new, require_client_authentication=False
        )
        try:
            fleet_port = self._server.add_secure_port(f"{host}:{port}", mutual)
            enrol_port = self._server.add_secure_port(f"{host}:{port + 1 if port else 0}", enrolment)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port} and {port + 1}: {error}") from error
        await self._server.start()
        return fleet_port, enrol_port

    async def stop(self) -> None:
        """Stop listening and end every stream."""
        await self._server.stop(_STOP_GRACE_S)


def _make_room() -> None:
    """Take descriptors for all those connections, as far as this process may. With the usual 1,024 a thousand silent
    sockets would leave none for the database."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS if hard == resource.RLIM_INFINITY else min(2 * CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _ShownAtAPort:
    """What gRPC is told at each handshake of one port: nothing, unless it has changed.

    gRPC (1.85.1, `ssl_security_connector.cc`) swaps its handshaker factory under a lock, and other handshakes take the
    factory outside of it. With a new one at every handshake 300 sockets at once ended the controller in 3 runs of 4
    (use after free), and no certificate was needed for it. So it is swapped only where something changed, and then
    after a pause, under that lock, in which those who read the old one have long taken their reference.
    """

    def __init__(self, current: Callable[[], grpc.ServerCertificateConfiguration]) -> None:
        self._current = current
        self.shown = current()

    def if_new(self) -> grpc.ServerCertificateConfiguration:
        """For gRPC's thread, which asks one handshake after another; None: as before, which its type stubs forget."""
        current = self._current()
        if current is self.shown:
            return None  # type: ignore[return-value]
        time.sleep(_REPLACE_GRACE_S)
        self.shown = current
        return current


class _Shown:
    """This controller's certificate and what it believes, made anew when either has changed or grown old.

    gRPC asks from its own threads.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._own_pair = OwnPair(authority)
        self._lock = threading.Lock()
        self._make(self._own_pair())

    def mutual(self) -> grpc.ServerCertificateConfiguration:
        """For agents: they must show a certificate below an agents' intermediate."""
        return self._current()[0]

    def enrolment(self) -> grpc.ServerCertificateConfiguration:
        """For hosts that have no certificate yet."""
        return self._current()[1]

    def _current(self) -> tuple[grpc.ServerCertificateConfiguration, grpc.ServerCertificateConfiguration]:
        with self._lock:
            if (pair := self._own_pair()) is not self._pair:
                self._make(pair)
            return self._made

    def _make(self, pair: KeyPair) -> None:
        self._pair = pair
        keys = [(pair.key_pem, pair.certificate_pem)]
        self._made = (
            grpc.ssl_server_certificate_configuration(keys, self._authority.clients_pem),
            grpc.ssl_server_certificate_configuration(keys),
        )
