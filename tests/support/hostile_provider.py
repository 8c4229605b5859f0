"""A hostile OpenID provider, for hostile cases alone: it stands before a real one and changes what that answers.

Whoever logs in, does so at the real one; codes, PKCE and the client's secret are checked there. ID tokens are minted
anew, with whatever key a test likes, the real one's included.
"""

import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support.certificates import make_certificate
from tests.support.glewlwyd import Glewlwyd, Tls, glewlwyd

Mint = Callable[["HostileProvider", dict[str, Any]], str]
_NOT_FORWARDED = frozenset({"host", "connection", "accept-encoding"})
_NOT_RETURNED = frozenset({"connection", "content-length", "content-encoding", "transfer-encoding"})


def any_use(key: RSAKey) -> RSAKey:
    """The same key, for every algorithm."""
    return RSAKey.import_key(key.as_pem(private=True))


def signed(provider: "HostileProvider", claims: dict[str, Any]) -> str:
    """As it should be."""
    return jwt.encode({"alg": "RS256", "kid": provider.real.key.kid}, claims, provider.real.key)


class HostileProvider:
    """Honest until a test changes `mint` or `published`."""

    real: Glewlwyd

    def __init__(self, tls: Tls) -> None:
        self.mint: Mint = signed
        self.published: dict[str, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = _server_side(tls).wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self, real: Glewlwyd) -> Iterator[None]:
        """Stand before the real one as long as the block lasts."""
        self.real = real
        with httpx.Client(base_url=real.base, verify=real.tls.trusted(), timeout=30) as self._there:
            thread = threading.Thread(target=self._server.serve_forever, name="hostile provider")
            thread.start()
            try:
                yield
            finally:
                self._server.shutdown()
                thread.join(10)
                self._server.server_close()

    def honest(self) -> None:
        """Change nothing any more."""
        self.mint, self.published = signed, {}

    def _changed(self, path: str, body: bytes) -> bytes:
        if path.endswith("/.well-known/openid-configuration"):
            return json.dumps(json.loads(body) | self.published).encode()
        if path.endswith("/jwks"):
            keys = json.loads(body)["keys"]  # naming an algorithm is optional (RFC 7517, 4.4): our own list must hold
            return json.dumps({"keys": [{k: v for k, v in key.items() if k != "alg"} for key in keys]}).encode()
        if path.endswith("/token") and b"id_token" in body:
            answer = json.loads(body)
            claims = jwt.decode(answer["id_token"], self.real.key).claims
            return json.dumps(answer | {"id_token": self.mint(self, claims)}).encode()
        return body

    def _handler(provider: "HostileProvider") -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self
        class Handler(BaseHTTPRequestHandler):
            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
                answer = provider._there.request(self.command, self.path, content=body, headers=headers)
                raw = provider._changed(self.path.partition("?")[0], answer.content)
                self.send_response(answer.status_code)
                for name, value in answer.headers.multi_items():
                    if name.lower() not in _NOT_RETURNED:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PUT = _forward  # noqa: N815 - names of the standard library

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


@contextmanager
def hostile_provider(redirect_uri: str) -> Iterator[HostileProvider]:
    """A hostile provider before a real one that takes its address for its own."""
    tls = Tls(*make_certificate())
    provider = HostileProvider(tls)
    with glewlwyd(redirect_uri, tls, provider.url) as real, provider.serving(real):
        yield provider


def _server_side(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:  # the ssl module reads files only
        file.write(tls.certificate + tls.key)
        file.flush()
        context.load_cert_chain(file.name)
    return context
