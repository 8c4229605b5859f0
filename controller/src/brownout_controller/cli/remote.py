"""A controller that runs elsewhere, as the command line speaks to it: `brownout --server https://HOST:PORT ...`."""

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
from brownout_agent.agent.trust import SERVER_NAME, NotTrusted, controllers_of, fetch_authority

from brownout_controller.cli.output import fail
from brownout_controller.cli.settings import default_data_dir
from brownout_controller.exit_codes import ExitCode
from brownout_controller.reporting.visible import visible

SERVER = "BROWNOUT_SERVER"
TOKEN = "BROWNOUT_TOKEN"  # noqa: S105 - the variable's name
TOKEN_FILE = "BROWNOUT_TOKEN_FILE"  # noqa: S105
SERVER_PIN = "BROWNOUT_SERVER_PIN"
SERVER_CA = "BROWNOUT_SERVER_CA"
TIMEOUT_S = 30.0
_PORT = 7780
_NOT_PERMITTED = frozenset({401, 403, 429})
_REFUSED = frozenset({409, 412, 428})
_LONGEST_TOKEN = 1_000


@dataclass(frozen=True, slots=True)
class Server:
    """Where the controller is, and how it and we are known."""

    url: str
    pin: str = ""
    ca_file: Path | None = None
    token_file: Path | None = None


_CHOSEN: ContextVar[Server | None] = ContextVar("server", default=None)


def choose(server: Server | None) -> None:
    """Name the controller that commands ask; None lets them work on this machine's own data folder."""
    _CHOSEN.set(server)


def chosen() -> Server | None:
    """The controller that was named before the command."""
    return _CHOSEN.get()


def needed() -> Server:
    """The same for a command that there is only for a controller that serves."""
    server = chosen()
    if server is None:
        message = "this asks a controller that serves its API, and none is named"
        fail(ExitCode.USAGE, "usage", message, f"brownout --server https://HOST:{_PORT} ..., or set {SERVER}")
    return server


def refuse_local(**options: object) -> None:
    """End the command where an option was given that means this machine alone."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        fail(ExitCode.USAGE, "usage", f"{', '.join(given)} goes with a controller in this process, not with --server")


class Remote:
    """Requests to one controller. Whatever goes wrong ends the command with the exit code that it has."""

    def __init__(self, server: Server, client: httpx.Client) -> None:
        self._server = server
        self._client = client

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON of a GET."""
        return self.request("GET", path, params={k: v for k, v in parameters.items() if v is not None}).json()

    def post(self, path: str, body: dict[str, Any] | None = None, **more: Any) -> Any:
        """The JSON of a POST."""
        return self.request("POST", path, json=body, **more).json()

    def request(self, method: str, path: str, *, expected: int = 0, **more: Any) -> httpx.Response:
        """An answer that is no refusal, or has the `expected` status all the same."""
        try:
            answer = self._client.request(method, f"/api/v1{path}", **more)
        except httpx.HTTPError as error:
            unreachable(self._server, error)
        if answer.status_code >= 400 and answer.status_code != expected:
            refuse(answer)
        return answer

    @contextmanager
    def stream(self, path: str, last_event_id: int | None) -> Iterator[Iterator[str]]:
        """The lines of a stream of events.

        Raises:
            httpx.HTTPError: it broke off.
        """
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        with self._client.stream("GET", f"/api/v1{path}", headers=headers) as answer:
            if answer.status_code >= 400:
                answer.read()
                refuse(answer)
            yield answer.iter_lines()


@contextmanager
def connect(server: Server, token: str | None = None) -> Iterator[Remote]:
    """A controller, with our token; another one if given, or "" to come as nobody."""
    parts = urlsplit(server.url)
    if parts.scheme != "https" or not parts.hostname or parts.path not in {"", "/"}:
        fail(ExitCode.USAGE, "usage", f"--server {server.url}: not https://HOST:PORT")
    extensions = {"sni_hostname": SERVER_NAME} if server.pin else {}
    token = _token(server) if token is None else token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    transport = httpx.HTTPTransport(verify=_trust(server, parts.hostname, parts.port or 443))

    def named(request: httpx.Request) -> None:
        request.extensions.update(extensions)

    with httpx.Client(
        base_url=f"https://{parts.netloc}", headers=headers, transport=transport, timeout=TIMEOUT_S,
        event_hooks={"request": [named]},
    ) as client:  # fmt: skip
        yield Remote(server, client)


def _trust(server: Server, host: str, port: int) -> ssl.SSLContext:
    """By the pin of the cluster's root, by a file of authorities, or by those that this machine trusts."""
    if server.pin:
        try:
            authorities = controllers_of(fetch_authority(host, port, server.pin), server.pin).decode()
        except NotTrusted as error:
            fail(ExitCode.UNREACHABLE, "not-trusted", str(error))
        except OSError as error:
            unreachable(server, error)
        context = ssl.create_default_context(cadata=authorities)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is trusted is below the root: agents' are not
        return context
    if server.ca_file is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=server.ca_file)
    except (OSError, ssl.SSLError) as error:
        fail(ExitCode.USAGE, "usage", f"{server.ca_file} holds no authority that can be read: {error}")


def _token(server: Server) -> str:
    """From a file that is ours alone, from the environment, or of the last `brownout login`; never from the command
    line, which everybody sees.
    """
    if server.token_file is not None:
        return read_token(server.token_file)
    if token := os.environ.get(TOKEN, "").strip():
        return token
    kept = kept_token(server)
    if not kept.exists():
        message = f"{TOKEN} is not set, and nobody is logged in at {server.url}"
        fail(ExitCode.NOT_PERMITTED, "no-token", message, "brownout login, or brownout --token-file FILE ...")
    return read_token(kept)


def kept_token(server: Server) -> Path:
    """Where `brownout login` keeps the token for a controller."""
    return default_data_dir() / "logins" / f"{urlsplit(server.url).netloc.replace(':', '_')}.token"


def read_token(path: Path) -> str:
    """A token in a file that is ours alone."""
    try:
        if path.stat().st_mode & 0o077:
            fail(ExitCode.USAGE, "token-file", f"{path} is open to others", f"chmod 600 {path}")
        with path.open() as file:
            return file.read(_LONGEST_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(ExitCode.USAGE, "token-file", f"{path} cannot be read: {error}")


def unreachable(server: Server, error: Exception) -> NoReturn:
    """End the command: the controller does not answer, or is not trusted."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        help_text = "give --server-pin as `brownout server start` prints it, or --server-ca FILE"
        fail(ExitCode.UNREACHABLE, "not-trusted", f"{server.url} is not trusted: {text}", help_text)
    fail(ExitCode.UNREACHABLE, "unreachable", f"{server.url} does not answer: {text}", "brownout server start, there")


def refuse(answer: httpx.Response) -> NoReturn:
    """End the command with what the controller says."""
    try:
        problem = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        problem = {}
    if not isinstance(problem, dict) or "code" not in problem:
        problem = {"code": "http", "title": f"the controller answers {answer.status_code}", "detail": answer.text[:200]}
    lines = [str(problem.get("title", "")), *str(problem.get("detail", "")).splitlines()]
    fail(_exit_code(answer.status_code, str(problem["code"])), str(problem["code"]), "\n".join(filter(None, lines)),
         visible(problem.get("next", "")))  # fmt: skip


def _exit_code(status: int, code: str) -> ExitCode:
    if code == "invalid-experiment":
        return ExitCode.INVALID_FILE
    if status in _NOT_PERMITTED:
        return ExitCode.NOT_PERMITTED
    if status in _REFUSED:
        return ExitCode.REFUSED
    if status == 503:
        return ExitCode.UNREACHABLE
    return ExitCode.INTERNAL_ERROR if status >= 500 else ExitCode.USAGE
