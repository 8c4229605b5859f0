"""Floods of HTTP/2 frames from somebody without a certificate (RFC 9113): others are served meanwhile and after it."""

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.test_fleet_limits import served
from tests.support.fleets import controller

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RESET, SETTINGS, PING, CONTINUATION = 1, 3, 4, 6, 9
CANCEL = struct.pack(">I", 8)
GET_SLASH = b"\x82\x84\x87\x41\x01x"
"""HPACK: GET, /, https, :authority x."""
FLOOD_S = 3.0


def frame(kind: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def resets() -> Iterator[bytes]:
    """CVE-2023-44487: a stream is opened and reset at once, over and over."""
    for stream in itertools.count(1, 2):
        yield frame(HEADERS, stream, GET_SLASH, flags=5) + frame(RESET, stream, CANCEL)


def pings() -> Iterator[bytes]:
    """CVE-2019-9512."""
    return itertools.repeat(frame(PING, 0, b"\0" * 8))


def continuations() -> Iterator[bytes]:
    """CVE-2024-27316: headers that never end."""
    yield frame(HEADERS, 1, GET_SLASH)
    while True:
        yield frame(CONTINUATION, 1, b"\x00\x01a\x01b" * 1_000)


def flood(port: int, frames: Iterator[bytes]) -> int:
    """Send for FLOOD_S, or until it is hung up on; returns the bytes that were taken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    sent, ends = 0, time.monotonic() + FLOOD_S
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, context.wrap_socket(raw) as tls:
        tls.settimeout(0.5)
        tls.sendall(PREFACE + frame(SETTINGS, 0))
        with contextlib.suppress(OSError):  # hung up on, or nobody reads any more
            while time.monotonic() < ends:
                sent += tls.send(b"".join(itertools.islice(frames, 100)))
    return sent


@pytest.mark.parametrize("frames", [resets, pings, continuations], ids=lambda frames: frames.__name__)
def test_a_flood_of_frames_harms_nobody_else(tmp_path: Path, frames: Callable[[], Iterator[bytes]]) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            flooding = [asyncio.create_task(asyncio.to_thread(flood, serving.enrol_port, frames())) for _ in range(4)]
            joined = 0
            while not all(one.done() for one in flooding):
                async with asyncio.timeout(15):
                    await served(serving, tmp_path / f"a-{joined}", f"app-{joined}")
                joined += 1
            assert min([await one for one in flooding]) > 0
            await served(serving, tmp_path / "after", "app-after")
            assert joined > 0

    asyncio.run(story())
