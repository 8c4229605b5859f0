"""The app, put together; it is not built when a route does not say what it needs."""

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brownout_controller import __version__
from brownout_controller.api import problems, routes
from brownout_controller.api.authentication import Authenticator
from brownout_controller.api.gate import Gate, GuardedRoute, declared
from brownout_controller.api.services import Services

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer, unless the route has set one itself. No answer allows another site anything (CORS)."""


class UndeclaredRoute(Exception):
    """A route that does not say what it needs. It must not be served."""


def create_app(services: Services) -> FastAPI:
    """The API of one controller.

    Raises:
        UndeclaredRoute: a route declares neither a permission nor that it is open.
        StoreError: the database does not answer.
    """
    app = FastAPI(
        title="Brownout",
        version=__version__,
        routes=[route for several in routes.ALL for route in several.routes],
        openapi_url=None,  # described by a route behind the gate instead; the usual pages load from a CDN
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.gate = Gate(Authenticator(services.access), services.logins, services.audit)
    problems.install(app)
    app.add_middleware(SecurityHeaders)
    check_declared(app)
    return app


def guarded_routes(app: FastAPI) -> list[GuardedRoute]:
    """Every route of an app.

    Raises:
        UndeclaredRoute: there is one that is not behind the gate, or does not say what it needs.
    """
    found = []
    for route in app.routes:
        if not isinstance(route, GuardedRoute) or declared(route.dependant) is None:
            raise UndeclaredRoute(f"{getattr(route, 'path', route)} does not declare a permission, nor that it is open")
        found.append(route)
    return found


def check_declared(app: FastAPI) -> None:
    """Refuse an app with a route that declares nothing.

    Raises:
        UndeclaredRoute: there is one.
    """
    guarded_routes(app)


class SecurityHeaders:
    """Puts the headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with if scope["type"] == "http" else send)
