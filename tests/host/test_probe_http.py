"""The HTTP probe against real nginx, and against peers that misbehave as no well-made server does."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from brownout_agent import dialing
from brownout_agent.observe import Sample
from brownout_agent.probes.http import LARGEST_BODY, HttpProbe

from tests.support.certificates import make_certificate
from tests.support.peers import Behaviour, peer, says, says_then_hangs, says_then_resets
from tests.support.residue import ask, nothing_left
from tests.support.services import free_port, nginx

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


@dataclass(frozen=True)
class Web:
    """A running nginx: base URL without and with TLS, and the authority that signed its certificate."""

    plain: str
    tls: str
    ca_file: str


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    port, tls_port = free_port(), free_port()
    # nginx reads these before it is ready and as whoever it runs as, so they go where that user may read.
    certificate, key = make_certificate()
    block = f"""
        listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate {{folder}}/certificate.pem; ssl_certificate_key {{folder}}/key.pem;
        add_header X-Served-By app-1 always;
        root {{folder}};
        location = /healthz {{ return 200 "ok\\n"; }}
        location = /broken {{ return 503 "no\\n"; }}
        location = /elsewhere {{ return 302 /healthz; }}
        location = /host {{ return 200 "host=$http_host agent=$http_user_agent method=$request_method\\n"; }}
        location = /drip {{ limit_rate 1; alias {{folder}}/big; }}
    """
    files = {"certificate.pem": certificate, "key.pem": key, "big": b"x" * 10_000_000}
    with nginx(block, port, files=files):
        ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
        ca_file.write_bytes(certificate)
        yield Web(f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}", str(ca_file))


def test_a_healthy_answer_is_ok_and_names_who_answered(web: Web) -> None:
    sample = ask(HttpProbe(f"{web.plain}/healthz", identity_header="X-Served-By"))
    assert (sample.ok, sample.outcome, sample.identity) == (True, "200", "app-1")
    assert 0 < sample.took_us < 1_000_000


def test_an_error_status_is_not_ok_and_still_names_who_answered(web: Web) -> None:
    sample = ask(HttpProbe(f"{web.plain}/broken", identity_header="x-served-by"))
    assert (sample.ok, sample.outcome, sample.identity) == (False, "503", "app-1")


def test_an_identity_is_empty_where_nobody_asked_for_it_or_nobody_gave_it(web: Web) -> None:
    assert ask(HttpProbe(f"{web.plain}/healthz")).identity == ""
    assert ask(HttpProbe(f"{web.plain}/healthz", identity_header="X-Nobody")).identity == ""


def test_a_redirect_is_an_answer_and_is_not_followed(web: Web) -> None:
    assert ask(HttpProbe(f"{web.plain}/elsewhere")).outcome == "302"
    assert ask(HttpProbe(f"{web.plain}/elsewhere", status="200-399")).ok


def test_the_body_can_be_asked_for_a_text(web: Web) -> None:
    assert ask(HttpProbe(f"{web.plain}/healthz", body_contains="ok")).ok
    sample = ask(HttpProbe(f"{web.plain}/healthz", body_contains="ready"))
    assert (sample.ok, sample.outcome) == (False, "body")


def test_headers_and_method_reach_the_server(web: Web) -> None:
    probe = HttpProbe(
        f"{web.plain}/host", headers=("Host: shop.test",), method="OPTIONS", body_contains="host=shop.test "
    )
    assert ask(probe).ok
    assert ask(HttpProbe(f"{web.plain}/host", method="OPTIONS", body_contains="method=OPTIONS")).ok
    assert ask(HttpProbe(f"{web.plain}/host", body_contains="agent=brownout-probe/")).ok


def test_head_has_no_body_and_needs_none(web: Web) -> None:
    assert ask(HttpProbe(f"{web.plain}/big", method="HEAD", timeout_ms=1_000)).ok


def test_a_large_body_is_read_up_to_its_cap_and_no_further(web: Web) -> None:
    assert ask(HttpProbe(f"{web.plain}/big")).ok
    taken = 0

    def count(connection: socket.socket) -> None:
        nonlocal taken
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            taken += connection.send(b"x" * 65_536)

    with peer(count) as port:
        assert ask(HttpProbe(f"http://127.0.0.1:{port}/")).ok
    # What socket buffers hold on both sides is taken too, but never a body of 100 MB.
    assert LARGEST_BODY <= taken < 20_000_000


def test_a_body_that_drips_is_cut_off_by_the_timeout(web: Web) -> None:
    sample = ask(HttpProbe(f"{web.plain}/drip", timeout_ms=300))
    assert (sample.ok, sample.outcome) == (False, "timeout")
    assert 300_000 <= sample.took_us < 550_000


def test_a_refused_connection() -> None:
    assert ask(HttpProbe(f"http://127.0.0.1:{free_port()}/")).outcome == "refused"


def test_ipv6_is_reached_by_an_address_in_brackets() -> None:
    with peer(says(OK), "::1") as port:
        assert ask(HttpProbe(f"http://[::1]:{port}/")).ok


def test_the_second_address_of_a_name_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    with peer(says(OK)) as port:
        monkeypatch.setattr(socket, "getaddrinfo", both)
        assert ask(HttpProbe(f"http://two-addresses.test:{port}/")).ok
    assert ask(HttpProbe(f"http://two-addresses.test:{port}/")).outcome == "refused"


def test_a_peer_that_hangs_is_a_timeout_and_no_later_than_that() -> None:
    with peer(says_then_hangs(b"")) as port:
        sample = ask(HttpProbe(f"http://127.0.0.1:{port}/", timeout_ms=200))
    assert (sample.ok, sample.outcome) == (False, "timeout")
    assert 200_000 <= sample.took_us < 450_000


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n"), "200"),
        (says(b"HTTP/1.0 200 OK\r\n\r\nok until the end"), "200"),
        (says_then_hangs(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"), "200"),
        (says(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK), "200"),
        (says(b"HTTP/1.1 204 No Content\r\n\r\n"), "204"),
        (says(b""), "closed"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Len"), "closed"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nok"), "closed"),
        (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30\r\nok"), "closed"),
        (says_then_resets(b""), "reset"),
        (says_then_resets(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nok"), "reset"),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "protocol"),
        (says(b"\x00\xff garbage \x1b[31m\r\n\r\n" * 50), "protocol"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), "protocol"),
        (says(b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n"), "protocol"),
        (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok"), "protocol"),
    ],
)
def test_every_kind_of_answer_has_its_own_word(behaviour: Behaviour, outcome: str) -> None:
    with peer(behaviour) as port:
        sample = ask(HttpProbe(f"http://127.0.0.1:{port}/", status="200,204", timeout_ms=3_000))
    assert (sample.outcome, sample.ok) == (outcome, outcome in ("200", "204"))


def test_an_identity_from_a_hostile_server_is_short_and_printable() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Served-By: a\xffp\x85p" + b"y" * 5_000 + b"\r\nContent-Length: 0\r\n\r\n"
    with peer(says(answer)) as port:
        identity = ask(HttpProbe(f"http://127.0.0.1:{port}/", identity_header="X-Served-By")).identity
    assert identity.startswith("a\xffpp")
    assert identity.isprintable()
    assert len(identity) == 100


def test_tls_is_verified_against_the_given_authority(web: Web) -> None:
    assert ask(HttpProbe(f"{web.tls}/healthz", ca_file=web.ca_file)).ok


def test_a_certificate_of_an_unknown_authority_is_not_ok_unless_verification_is_off(web: Web) -> None:
    assert ask(HttpProbe(f"{web.tls}/healthz")).outcome == "tls"
    assert ask(HttpProbe(f"{web.tls}/healthz", tls_verify=False)).ok


def test_a_certificate_for_another_name_is_not_ok(web: Web) -> None:
    other = web.tls.replace("127.0.0.1", "localhost")
    assert ask(HttpProbe(f"{other}/healthz", ca_file=web.ca_file)).outcome == "tls"


def test_plain_http_on_a_tls_port_and_tls_on_a_plain_port_are_told_apart(web: Web) -> None:
    assert ask(HttpProbe(f"{web.tls}/healthz".replace("https", "http"))).outcome == "400"
    assert ask(HttpProbe(f"{web.plain}/healthz".replace("http", "https"))).outcome == "tls"


def test_a_tls_handshake_that_hangs_is_a_timeout_and_leaves_nothing_behind() -> None:
    with peer(says_then_hangs(b"")) as port:
        assert ask(HttpProbe(f"https://127.0.0.1:{port}/", timeout_ms=200)).outcome == "timeout"


def test_a_tls_peer_that_never_says_goodbye_does_not_hold_the_socket(web: Web, tmp_path: Path) -> None:
    certificate, key = make_certificate()
    (tmp_path / "both.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")

    def behave(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            says_then_hangs(OK)(tls)

    with peer(behave) as port:
        assert ask(HttpProbe(f"https://127.0.0.1:{port}/", ca_file=str(tmp_path / "both.pem"))).ok


def test_a_missing_authority_file_is_the_hosts_trouble_and_not_the_targets(web: Web) -> None:
    with pytest.raises(ValueError, match=r"/nowhere/ca.pem: No such file.*read on the host that asks"):
        ask(HttpProbe(f"{web.tls}/healthz", ca_file="/nowhere/ca.pem"))


def test_a_name_that_does_not_exist_is_dns() -> None:
    assert ask(HttpProbe("http://no-such-host.invalid/", timeout_ms=5_000)).outcome == "dns"


def test_a_resolver_that_hangs_costs_one_thread_and_does_not_block_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    calls: list[str] = []

    def hang(host: str, *_: object, flags: int = 0, **__: object) -> list[object]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a literal")
        calls.append(host)
        released.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def ask_often() -> tuple[list[Sample], int]:
        probe = HttpProbe("http://slow-dns.test/", timeout_ms=150)
        samples = await asyncio.gather(*(probe.ask() for _ in range(20)))
        return samples, sum(thread.name == "resolve slow-dns.test" for thread in threading.enumerate())

    try:
        samples, threads = asyncio.run(ask_often())
    finally:
        released.set()
    assert [sample.outcome for sample in samples] == ["timeout"] * 20
    assert all(sample.took_us < 400_000 for sample in samples)
    assert (calls, threads) == (["slow-dns.test"], 1)


def test_a_name_that_leads_to_cloud_metadata_is_never_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def rebind(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    async def never(*_: object) -> socket.socket:
        raise AssertionError("connected to cloud metadata")

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    monkeypatch.setattr(dialing, "_connect", never)
    assert ask(HttpProbe("http://innocent.test/")).outcome == "forbidden"


def test_a_cancelled_question_leaves_nothing_behind() -> None:
    async def cancel_in_flight() -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def behave(connection: socket.socket) -> None:
            connection.recv(65_536)
            loop.call_soon_threadsafe(arrived.set)
            connection.recv(1)

        with peer(behave) as port:
            async with nothing_left():
                question = asyncio.create_task(HttpProbe(f"http://127.0.0.1:{port}/").ask())
                await asyncio.wait_for(arrived.wait(), 5)
                question.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await question

    asyncio.run(cancel_in_flight())
