"""A service that serves one connection after the other, each until its client closes it; the next ones queue."""

PORT = 10_020
BACKLOG = 2


def service(port: int) -> str:
    """A program that says `ready` when it listens there."""
    return f"""
import socket
server = socket.create_server(("127.0.0.1", {port}), backlog={BACKLOG})
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    try:
        while connection.recv(4096):
            connection.sendall(b"hello")
    except OSError:
        pass
    connection.close()
"""


SERVICE = service(PORT)
