"""login, logout: a token for this user, by the browser they log in with; kept in a file of theirs alone."""

import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import typer

from brownout_controller.access.pkce import challenge_of, new_verifier, shown_code
from brownout_controller.cli import remote
from brownout_controller.cli.output import fail
from brownout_controller.exit_codes import ExitCode

WITHIN_S = 300.0
_CODE = re.compile(r"[A-Za-z0-9_-]{43}")
_ARRIVED = b"The command line has it now. You can close this page.\n"
_PEER_TIMEOUT_S = 10.0
_UNAUTHORIZED = 401


def login(
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65_535, help="of 127.0.0.1, where the browser comes back; 0: a free one"),
    ] = 0,
) -> None:
    """Log in at a controller by a browser on this machine, for as long as a session lasts or until `brownout logout`.

    From a machine without a browser: ssh -L PORT:127.0.0.1:PORT, and --port PORT there.
    """
    server = remote.needed()
    verifier = new_verifier()
    challenge = challenge_of(verifier)
    with remote.connect(server, token="") as api, _landing(port) as (own_port, codes):
        typer.echo("Open this in a browser on this machine, and agree if it shows the same code:", err=True)
        typer.echo(f"  {shown_code(challenge)}", err=True)
        query = urlencode({"cli_port": own_port, "cli_challenge": challenge})
        print(f"{server.url.rstrip('/')}/api/v1/auth/login?{query}", flush=True)
        try:
            code = codes.get(timeout=WITHIN_S)
        except queue.Empty:
            fail(ExitCode.NOT_PERMITTED, "no-login", f"nobody logged in within {WITHIN_S:g} s", "brownout login")
        made = api.post("/auth/cli/token", {"code": code, "verifier": verifier})
    keep(remote.kept_token(server), made["token"])
    until = datetime.fromtimestamp(made["expires_ns"] / 1e9, UTC)
    typer.echo(f"Logged in as {made['user']} until {until:%Y-%m-%d %H:%M} UTC.", err=True)


def logout() -> None:
    """Revoke the token that `brownout login` brought, and forget it."""
    server = remote.needed()
    file = remote.kept_token(server)
    if not file.exists():
        fail(ExitCode.REFUSED, "no-login", f"nobody is logged in at {server.url} by `brownout login`")
    token = remote.read_token(file)
    with remote.connect(server, token=token) as api:
        answer = api.request("DELETE", f"/tokens/{token.split('_')[1]}", expected=_UNAUTHORIZED)
    file.unlink()
    was_over = " The login had ended before." if answer.status_code == _UNAUTHORIZED else ""
    typer.echo(f"Logged out of {server.url}.{was_over}", err=True)


def keep(file: Path, token: str) -> None:
    """Write a token where its owner alone can read it; all of it or nothing."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as text:
            text.write(token)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def _landing(port: int) -> Iterator[tuple[int, "queue.SimpleQueue[str]"]]:
    """Where the browser comes back to: a port of 127.0.0.1, and the codes that arrive there."""
    codes: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        timeout = _PEER_TIMEOUT_S

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            (code, *_) = parse_qs(parts.query).get("code", [""])
            good = parts.path == "/" and _CODE.fullmatch(code) is not None
            self.send_response(200 if good else 404)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(_ARRIVED if good else b"Nothing is here.\n")
            if good:
                codes.put(code)

        def log_message(self, *_: Any) -> None:
            """Requests have codes in them: not a word."""

    try:
        landing = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        fail(ExitCode.UNREACHABLE, "cannot-listen", f"127.0.0.1:{port}: {error}", "choose another --port")
    landing.daemon_threads = True
    thread = threading.Thread(target=landing.serve_forever, kwargs={"poll_interval": 0.05}, name="landing")
    thread.start()
    try:
        yield landing.server_port, codes
    finally:
        landing.shutdown()
        thread.join()
        landing.server_close()
