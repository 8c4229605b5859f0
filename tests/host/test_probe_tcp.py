"""The TCP probe against real listeners on loopback."""

import asyncio
import os
import resource
import socket
import threading

import pytest
from brownout_agent.dialing import NotAskedError
from brownout_agent.probes.tcp import TcpProbe

from tests.support.residue import ask, open_descriptors
from tests.support.services import free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_open_port_is_connected(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        literal = f"[{host}]" if ":" in host else host
        sample = ask(TcpProbe(f"{literal}:{listener.getsockname()[1]}"))
        assert (sample.ok, sample.outcome, sample.identity) == (True, "connected", "")
        assert 0 < sample.took_us < 1_000_000
        listener.settimeout(5)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b"", "the probe closes what it opened, and sends nothing"


def test_a_closed_port_is_refused() -> None:
    sample = ask(TcpProbe(f"127.0.0.1:{free_port()}"))
    assert (sample.ok, sample.outcome) == (False, "refused")


def test_a_listener_whose_queue_is_full_is_a_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        # Linux drops the SYN when the accept queue is full: nobody ever answers, as behind a packet filter.
        with socket.create_connection(address):
            sample = ask(TcpProbe(f"127.0.0.1:{address[1]}", timeout_ms=200))
    assert (sample.ok, sample.outcome) == (False, "timeout")
    assert 200_000 <= sample.took_us < 450_000


def test_a_name_is_resolved() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ask(TcpProbe(f"localhost:{listener.getsockname()[1]}")).ok


def test_a_network_that_has_no_route_is_unreachable() -> None:
    # 255.255.255.255 cannot be connected to by TCP: the kernel itself says ENETUNREACH or EACCES, and sends nothing.
    assert ask(TcpProbe("255.255.255.255:9")).outcome == "unreachable"


def test_a_prober_without_descriptors_did_not_ask() -> None:
    async def ask_without_descriptors() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The limit bounds the number of the next descriptor, so every number below it has to be taken.
        limit = max(open_descriptors()) + 1
        fillers: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    fillers.append(os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(NotAskedError, match="Too many open files"):
                await TcpProbe("127.0.0.1:9").ask()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)

    asyncio.run(ask_without_descriptors())


def test_a_prober_that_may_not_start_a_thread_to_resolve_a_name_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NotAskedError, match="cannot resolve localhost: can't start new thread"):
        ask(TcpProbe("localhost:9"))
