"""Settings of probes: what is accepted, and that every refusal says what to write instead."""

import contextlib
import errno
import socket
import ssl

import pytest
from brownout_agent.dialing import Address, NotAskedError, outcome_of, parse_address
from brownout_agent.observe import build, probe_kinds
from brownout_agent.probes.http import HttpProbe, parse_statuses
from brownout_agent.probes.tcp import TcpProbe
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("db-1:5432", Address("db-1", 5432)),
        ("10.0.0.7:22", Address("10.0.0.7", 22)),
        ("[::1]:80", Address("::1", 80)),
        ("[fe80::1%eth0]:65535", Address("fe80::1%eth0", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("db-1", "write it like db-1:5432"),
        ("db-1:", "write it like db-1:5432"),
        ("db-1:http", "has no port"),
        ("db-1:-1", "has no port"),
        ("db-1:١٢", "has no port"),
        ("::1:80", r"in brackets, like \[::1\]:80"),
        ("db-1:0", "outside of 1-65535"),
        ("db-1:65536", "outside of 1-65535"),
        (":80", "not a host name"),
        ("a b:80", "not a host name"),
        ("a..b:80", "not a host name"),
        ("169.254.169.254:80", "cloud metadata"),
        ("[::ffff:169.254.169.254]:80", "cloud metadata"),
        ("[fd00:ec2::254]:80", "cloud metadata"),
    ],
)
def test_an_address_that_can_never_be_asked_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        TcpProbe(text)
    # The experiment language points at the setting that the text begins with.
    assert str(refusal.value).startswith("address ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "shop.test/healthz"}, "begin with http"),
        ({"url": "ftp://shop.test/"}, "begin with http"),
        ({"url": "file:///etc/passwd"}, "begin with http"),
        ({"url": "http:///healthz"}, "not a host name"),
        ({"url": "http://shop.test:0/"}, "outside of 1-65535"),
        ({"url": "http://shop.test:99999/"}, "range"),
        ({"url": "http://[::1/"}, "url `http://\\[::1/`"),
        ({"url": "http://shop.test/a b"}, "percent-encode"),
        ({"url": "http://shop.test/a\r\nX-Evil: 1"}, "percent-encode"),
        ({"url": "http://shop.test/ü"}, "percent-encode"),
        ({"url": "http://me:secret@shop.test/"}, "Authorization: Basic"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "cloud metadata"),
        ({"status": 99}, "100 to 599"),
        ({"status": "2xx"}, "write 200, 200-399 or 200,204"),
        ({"status": "399-200"}, "100 to 599"),
        ({"status": ""}, "100 to 599"),
        ({"status": True}, "100 to 599"),
        ({"timeout_ms": 0}, "outside of 1ms to 60s"),
        ({"timeout_ms": float("nan")}, "outside of 1ms to 60s"),
        ({"timeout_ms": 60_001}, "outside of 1ms to 60s"),
        ({"method": "DELETE"}, "GET, HEAD, OPTIONS"),
        ({"headers": ["Host shop.test"]}, "Host: shop.test"),
        ({"headers": ["Host: a\r\nX-Evil: 1"]}, "is not a line"),
        ({"headers": ["Connection: keep-alive"]}, "manages itself"),
        ({"identity_header": "X Served By"}, "try X-Served-By"),
        ({"method": "HEAD", "body_contains": "ok"}, "use GET"),
    ],
)
def test_http_settings_that_can_never_work_are_refused_with_the_reason(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        HttpProbe(**{"url": "http://shop.test/", **settings})  # type: ignore[arg-type]
    named = str(refusal.value).split()[0]
    assert named in settings or f"{named}s" in settings or f"{named}_ms" in settings


def test_a_password_in_a_url_is_not_repeated_in_the_refusal() -> None:
    for url in ("http://me:hunter2@shop.test/", "http://me:hunter2@shop.test:99999/", "ftp://me:hunter2@[x/"):
        with pytest.raises(ValueError, match="user name") as refusal:
            HttpProbe(url)
        assert "hunter2" not in str(refusal.value)


def test_settings_come_from_the_wire_as_lists_and_are_values_all_the_same() -> None:
    probe = build(probe_kinds(), "http", {"url": "http://shop.test/", "headers": ["Host: a"]})
    assert probe == HttpProbe("http://shop.test/", headers=("Host: a",))
    assert hash(probe) == hash(HttpProbe("http://shop.test/", headers=("Host: a",)))


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        (200, {200}, {199, 201, 500}),
        ("200-399", {200, 302, 399}, {199, 400}),
        ("200,204, 300 - 308", {200, 204, 300, 308}, {201, 299, 309}),
    ],
)
def test_statuses_are_numbers_and_ranges(text: int | str, good: set[int], bad: set[int]) -> None:
    statuses = parse_statuses(text)
    assert {code for code in range(100, 600) if any(code in part for part in statuses)} >= good
    assert not any(code in part for code in bad for part in statuses)


@given(st.text(max_size=40))
def test_any_text_is_a_probe_or_a_value_error(text: str) -> None:
    for make in (lambda: TcpProbe(text), lambda: HttpProbe(text), lambda: HttpProbe("http://a/", headers=(text,))):
        with contextlib.suppress(ValueError):
            make()  # nothing else may be raised


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "dns"),
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), "refused"),
        (ConnectionResetError(), "reset"),
        (BrokenPipeError(errno.EPIPE, ""), "reset"),
        (TimeoutError(), "timeout"),
        (OSError(errno.ETIMEDOUT, ""), "timeout"),
        (OSError(errno.EHOSTUNREACH, ""), "unreachable"),
        (OSError(errno.EADDRNOTAVAIL, ""), "unreachable"),
        (ssl.SSLCertVerificationError(1, "expired"), "tls"),
        (ssl.SSLEOFError(8, "eof"), "closed"),
        (OSError(errno.EPROTO, ""), "eproto"),
        (OSError("without a number"), "error"),
    ],
)
def test_every_failure_of_the_target_has_one_word(error: OSError, word: str) -> None:
    assert outcome_of(error) == word


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_failure_of_the_prober_is_never_blamed_on_the_target(number: int) -> None:
    with pytest.raises(NotAskedError):
        outcome_of(OSError(number, ""))
