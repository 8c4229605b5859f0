"""The API's certificate: it names what people reach the controller by, and changes while the controller runs."""

import asyncio
import datetime
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from brownout_controller.api import server
from brownout_controller.api.names import own_names
from brownout_controller.api.server import serve_api
from brownout_controller.cli.main import app
from brownout_controller.fleet import own_pair
from brownout_controller.fleet.authority import Authority, KeyPair
from brownout_controller.fleet.own_pair import RENEW_AFTER, OwnPair
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from fastapi import FastAPI
from typer.testing import CliRunner

from tests.support.polling import wait_until

BIN = Path(sys.executable).parent
NOT_TRUSTED, DONE = 5, 0


def leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


def names_of(pem: bytes) -> set[str]:
    found = leaf(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


def shown_at(url: str) -> bytes:
    host, port = url.removeprefix("https://").split("/")[0].rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)), timeout=20).encode()


# ---- what it names ---------------------------------------------------------------------------------------------------


@dataclass
class Started:
    """A real `brownout server start`, as people elsewhere come to it."""

    port: str
    pin: str
    token: str
    authorities: Path

    def whoami(self, host: str, *trust: str) -> tuple[int, str]:
        argv = ["--server", f"https://{host}:{self.port}", *trust, "whoami", "-o", "json"]
        done = CliRunner().invoke(app, argv, env={"BROWNOUT_TOKEN": self.token, "BROWNOUT_SERVER_PIN": None})
        return done.exit_code, done.output


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("started")
    out, err = folder / "out", folder / "err"
    argv = [
        BIN / "brownout", "server", "start", "--data-dir", folder / "data", "--listen", "127.0.0.1:0",
        "--api", "0.0.0.0:0", "--advertise", "controller.example:7700",
    ]  # fmt: skip
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(argv, stdout=stdout, stderr=stderr, env={**os.environ, "TMPDIR": str(folder)})
    try:
        wait_until(lambda: out.read_text().endswith("\n") or process.poll() is not None, "the server", 60)
        found = re.search(r"API on https://\S+:(\d+)/api/v1, authority (sha256:[0-9a-f]{64})", err.read_text())
        assert found is not None, err.read_text()
        bundle = CliRunner().invoke(app, ["ca", "bundle", "--data-dir", str(folder / "data")])
        assert bundle.exit_code == DONE
        (folder / "authorities.pem").write_text(bundle.stdout)
        yield Started(found[1], found[2], out.read_text().strip(), folder / "authorities.pem")
    finally:
        process.terminate()
        process.wait(60)


def test_it_names_what_it_listens_on_what_is_advertised_and_the_host(started: Started) -> None:
    assert own_names("192.0.2.7", "") == ("192.0.2.7", socket.gethostname())
    assert own_names("2001:db8::7", "c.example") == ("2001:db8::7", "c.example", socket.gethostname())
    named = names_of(shown_at(f"https://127.0.0.1:{started.port}"))
    assert {"127.0.0.1", "controller.example", "localhost", socket.gethostname()} <= named
    own = [entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == socket.AF_INET]
    assert {entry.address for entry in own} <= named


def test_the_command_line_trusts_it_by_these_names_and_by_no_other(started: Started, tmp_path: Path) -> None:
    code, said = started.whoami("127.0.0.1", "--server-ca", str(started.authorities))
    assert (code, json.loads(said)["user"]) == (DONE, "admin")
    code, said = started.whoami("127.0.0.3", "--server-ca", str(started.authorities))
    assert (code, "error[not-trusted]" in said, "127.0.0.3" in said) == (NOT_TRUSTED, True, True)
    assert started.whoami("127.0.0.3", "--server-pin", started.pin)[0] == DONE, "a pin knows the cluster, not a name"
    other = tmp_path / "other.pem"
    other.write_bytes(Authority(tmp_path / "other").bundle_pem)
    code, said = started.whoami("127.0.0.1", "--server-ca", str(other))
    assert (code, "error[not-trusted]" in said) == (NOT_TRUSTED, True)


# ---- how it changes --------------------------------------------------------------------------------------------------


def test_a_pair_stays_until_two_thirds_of_its_life_or_another_phase_of_the_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority")
    addresses = ["10.0.0.1"]
    pair = OwnPair(authority, lambda: addresses)
    first, begun = pair(), datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(own_pair, "_now", lambda: begun + RENEW_AFTER - datetime.timedelta(minutes=1))
    assert pair() is first
    addresses.append("10.0.0.2")
    monkeypatch.setattr(own_pair, "_now", lambda: begun + RENEW_AFTER)
    second = pair()
    assert names_of(second.certificate_pem) - names_of(first.certificate_pem) == {"10.0.0.2"}
    assert second.key_pem != first.key_pem
    for _ in range(3):
        authority.rotate(authority.rotation.advanced(authority.rotation.began_ns))
    third = pair()
    assert root_of(third) != root_of(second)
    assert pair() is third


def root_of(pair: KeyPair) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pair.certificate_pem)[-1]


def test_what_is_shown_follows_while_the_api_serves_and_a_wrong_pair_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "LOOK_EVERY_S", 0.05)
    authority = Authority(tmp_path / "authority")
    trust = ssl.create_default_context(cadata=authority.bundle_pem.decode())
    first, second, third = authority.server_pair(), authority.server_pair(), authority.server_pair()
    now = [first]

    async def until(shown: KeyPair, port: int) -> None:
        async with asyncio.timeout(20):
            while leaf(await asyncio.to_thread(shown_at, f"https://127.0.0.1:{port}")) != leaf(shown.certificate_pem):
                await asyncio.sleep(0.02)

    async def story() -> None:
        async with serve_api(FastAPI(), "127.0.0.1", 0, lambda: now[0]) as port:
            await until(first, port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
            now[0] = KeyPair(third.key_pem, second.certificate_pem)
            async with asyncio.timeout(20):
                while "the API keeps its certificate" not in caplog.text:
                    await asyncio.sleep(0.02)
            await until(first, port)
            now[0] = second
            await until(second, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 404"), "who is connected stays so"
            writer.close()

    asyncio.run(story())


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    pair = Authority(tmp_path / "authority").server_pair()
    key = serialization.load_pem_private_key(pair.key_pem, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )

    async def serve() -> None:
        async with serve_api(FastAPI(), "127.0.0.1", 0, lambda: KeyPair(locked, pair.certificate_pem)):
            pass

    with pytest.raises(ssl.SSLError):
        asyncio.run(serve())
