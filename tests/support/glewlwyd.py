"""A real OpenID provider: Debian's Glewlwyd, over TLS on a free port of 127.0.0.1, in a folder of its own.

It is set up as its documentation says (its `API.md`, `OIDC.md`): through the API that its administration page uses.
"""

import contextlib
import json
import secrets
import shutil
import sqlite3
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc.jwk import RSAKey

from tests.support.certificates import make_certificate
from tests.support.services import Service, free_port, listens, running, service_folder

CLIENT, SECRET = "brownout", "not-a-secret"
PASSWORD = "correct horse"
ADMIN = {"username": "admin", "password": "password"}  # as its first database has them
TABLES = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
MODULES = Path("/usr/lib/glewlwyd")
PROPERTIES = {
    "preferred_username": {"multiple": False, "read": True, "write": True},
    "groups": {"multiple": True, "read": True, "write": True},
}
"""What it keeps of a user besides name and password; like many providers it holds no preferred name to be unique."""


@dataclass(frozen=True)
class Tls:
    """The provider's certificate and its key, PEM, and who trusts it."""

    certificate: bytes
    key: bytes

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.certificate.decode())


def goes_on_at(login_page: str) -> str:
    """Where its login page sends a browser once somebody has logged in there and agreed."""
    return f"{parse_qs(urlsplit(login_page).query)['callback_url'][0]}&g_continue"


class Person:
    """Somebody with an account at the provider, and their browser, which stays logged in there."""

    def __init__(self, account: str, browser: httpx.Client) -> None:
        self.account = account
        self._browser = browser
        self._logged_in = False

    def follow(self, there: str, password: str = PASSWORD) -> str:
        """Go where the controller sends one, give one's password if asked for it, agree; where one is sent back to.

        Raises:
            httpx.HTTPStatusError: the provider refuses the request (403) or the password (401).
        """
        page = self._browser.get(there)
        if page.is_error:
            page.raise_for_status()
        if not self._logged_in:
            self.log_in(password)
        back: str = self._browser.get(goes_on_at(page.headers["Location"])).headers["Location"]
        return back

    def log_in(self, password: str = PASSWORD) -> httpx.Cookies:
        """What the provider's login page does; the cookies by which it knows this person from now on.

        Raises:
            httpx.HTTPStatusError: it refuses the password (401).
        """
        self._browser.post("/api/auth/", json={"username": self.account, "password": password}).raise_for_status()
        agreed = self._browser.put(f"/api/auth/grant/{CLIENT}", json={"scope": "openid profile"})
        agreed.raise_for_status()
        self._logged_in = True
        return self._browser.cookies


class Glewlwyd:
    """The provider, running, with one client: ours."""

    def __init__(self, base: str, tls: Tls, issuer: str, redirect_uri: str) -> None:
        self.issuer = issuer
        self.tls = tls
        self.key = self._new_key("1")
        self.base = base
        self.redirect_uri = redirect_uri
        self._browsers = contextlib.ExitStack()
        self._admin = self._browsers.enter_context(self._new_browser())

    # ---- who is there ------------------------------------------------------------------------------------------------

    def add_person(self, *groups: str, preferred_username: str = "") -> Person:
        """Somebody new; the name that they prefer is that of their account if left out."""
        account = f"mary-{secrets.token_hex(4)}"
        rights = {"scope": ["openid", "profile", "g_profile"], "password": PASSWORD, "enabled": True}
        names = {"username": account, "preferred_username": preferred_username or account}
        self._admin.post("/api/user/", json={**names, **rights, "groups": list(groups)}).raise_for_status()
        browser = self._new_browser()
        self._browsers.callback(browser.close)
        return Person(account, browser)

    def change_person(self, person: Person, **changed: Any) -> None:
        """Other groups, or another preferred name."""
        account = f"/api/user/{person.account}"
        known = self._admin.get(account).raise_for_status().json()
        self._admin.put(account, json={**known, **changed}).raise_for_status()

    def rotate_key(self) -> None:
        """Sign with a fresh key from now on, and publish that one alone."""
        self.key = self._new_key(str(int(self.key.kid or 0) + 1))
        plugin = self._admin.get("/api/mod/plugin/oidc").raise_for_status().json()
        plugin["parameters"]["jwks-private"] = self._private_keys()
        self._admin.put("/api/mod/plugin/oidc", json=plugin).raise_for_status()
        self._admin.put("/api/mod/plugin/oidc/reset").raise_for_status()

    # ---- how it is set up --------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Our client, and what its tokens say."""
        self._admin.post("/api/auth/", json=ADMIN).raise_for_status()
        users = self._admin.get("/api/mod/user/database").raise_for_status().json()
        users["parameters"]["data-format"].update(PROPERTIES)
        self._admin.put("/api/mod/user/database", json=users).raise_for_status()
        self._admin.put("/api/mod/user/database/reset").raise_for_status()
        scope = {"name": "profile", "display_name": "Profile", "description": "who one is", "scheme": {}}
        self._admin.post("/api/scope/", json={**scope, "password_required": True}).raise_for_status()
        plugin = {"module": "oidc", "name": "oidc", "display_name": "OpenID", "order_rank": 0, "readonly": False}
        self._admin.post("/api/mod/plugin/", json={**plugin, "parameters": self._protocol()}).raise_for_status()
        client = {
            "client_id": CLIENT, "client_secret": SECRET, "confidential": True, "enabled": True,
            "redirect_uri": [self.redirect_uri], "authorization_type": ["code"], "scope": [],
            "token_endpoint_auth_method": ["client_secret_basic"],
        }  # fmt: skip
        self._admin.post("/api/client/", json=client).raise_for_status()

    def close(self) -> None:
        self._browsers.close()

    def _protocol(self) -> dict[str, Any]:
        """Authorization code with PKCE, and nothing else."""
        flows = ("token", "none", "password", "client", "device", "refresh")
        claim = {"type": "string", "mandatory": True, "on-demand": False, "scope": []}
        return {
            "iss": self.issuer, "jwks-private": self._private_keys(), "jwks-show": True,
            "access-token-duration": 3_600, "refresh-token-duration": 3_600, "code-duration": 600,
            "refresh-token-rolling": False, "allow-non-oidc": False, "subject-type": "public",
            "auth-type-code-enabled": True, "auth-type-code-revoke-replayed": True,
            **{f"auth-type-{name}-enabled": False for name in flows},
            "pkce-allowed": True, "pkce-method-plain-allowed": False, "pkce-required": True, "oauth-as-iss-id": True,
            "allowed-scope": ["openid", "profile"],
            "claims": [{"name": name, "user-property": name, **claim} for name in PROPERTIES],
        }  # fmt: skip

    def _private_keys(self) -> str:
        return json.dumps({"keys": [self.key.as_dict(private=True)]})

    def _new_key(self, kid: str) -> RSAKey:
        return RSAKey.generate_key(2048, parameters={"kid": kid, "use": "sig", "alg": "RS256"})

    def _new_browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.base, verify=self.tls.trusted(), timeout=30)


@contextlib.contextmanager
def glewlwyd(redirect_uri: str, tls: Tls | None = None, public_url: str = "") -> Iterator[Glewlwyd]:
    """The provider, as long as the block lasts. `public_url` is where it is told that people reach it."""
    program = shutil.which("glewlwyd")
    assert program, "no glewlwyd on PATH; next: apt-get install glewlwyd"
    tls, port = tls or Tls(*make_certificate()), free_port()
    base = f"https://127.0.0.1:{port}"
    public_url = public_url or base
    with service_folder() as folder:
        _write_files(folder, port, tls, public_url)
        argv = [program, "--config-file", str(folder / "glewlwyd.conf")]
        with running(Service(argv, folder, lambda: listens(port))):
            provider = Glewlwyd(base, tls, f"{public_url}/api/oidc", redirect_uri)
            try:
                provider.set_up()
                yield provider
            finally:
                provider.close()


def _write_files(folder: Path, port: int, tls: Tls, public_url: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "glewlwyd.db")) as database:
        database.executescript(TABLES.read_text())
    (folder / "glewlwyd.db").chmod(0o666)  # the service runs as somebody else
    (folder / "certificate.pem").write_bytes(tls.certificate)
    (folder / "key.pem").write_bytes(tls.key)
    (folder / "glewlwyd.conf").write_text(f"""
        port = {port}
        bind_address = "127.0.0.1"
        external_url = "{public_url}"
        login_url = "login.html"
        api_prefix = "api"
        static_files_path = "/usr/share/glewlwyd/webapp/"
        static_files_mime_types = ({{ extension = ".html" mime_type = "text/html" }})
        log_mode = "console"
        log_level = "WARNING"
        cookie_domain = "127.0.0.1"
        cookie_secure = 1
        session_key = "glewlwyd"
        admin_scope = "g_admin"
        profile_scope = "g_profile"
        user_module_path = "{MODULES / "user"}"
        client_module_path = "{MODULES / "client"}"
        user_auth_scheme_module_path = "{MODULES / "scheme"}"
        plugin_module_path = "{MODULES / "plugin"}"
        hash_algorithm = "SHA512"
        use_secure_connection = true
        secure_connection_key_file = "{folder / "key.pem"}"
        secure_connection_pem_file = "{folder / "certificate.pem"}"
        database = {{ type = "sqlite3" path = "{folder / "glewlwyd.db"}" }}
    """)
