"""TCP peers that misbehave on purpose: what no well-made server does. Real sockets, on loopback, in a thread."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

Behaviour = Callable[[socket.socket], None]
"""What the peer does with one accepted connection; the connection is closed when it returns."""


def says(data: bytes) -> Behaviour:
    """Reads a request's head, answers `data` and closes in an orderly way."""

    def behave(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(data)

    return behave


def says_then_resets(data: bytes) -> Behaviour:
    """Reads a request's head, answers `data`, waits for it to be taken, and resets the connection."""

    def behave(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(data)
        # SO_LINGER with zero time makes close() send RST instead of FIN (socket(7)).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return behave


def says_then_hangs(data: bytes) -> Behaviour:
    """Reads a request's head, answers `data`, and then nothing until the other side goes away."""

    def behave(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(data)
        connection.recv(1)

    return behave


def read_head(connection: socket.socket) -> bytes:
    """Read up to the empty line that ends a request's head, or the end of the connection."""
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = connection.recv(65_536)
        if not chunk:
            break
        head += chunk
    return head


@contextlib.contextmanager
def peer(behave: Behaviour, host: str = "127.0.0.1") -> Iterator[int]:
    """A listener that gives each connection, one after the other, to `behave`. Yields its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # shut down below
                with connection, contextlib.suppress(OSError):  # the other side may go away at any time
                    connection.settimeout(10)
                    behave(connection)

        server = threading.Thread(target=serve, name="peer")
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            server.join()
