"""Every route x everybody x {an object of one's own environment, of another one, absent}: what is answered.

`python -m tests.support.api_table` writes what it finds to tests/e2e/api_table.txt. Read the difference: that file is
what was meant, and `tests/e2e/test_api_table.py` holds the server to it.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from brownout_controller.access.approvals import BlastLimit
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.api.app import create_app, guarded_routes
from brownout_controller.api.gate import declared

from tests.support.api_server import ApiServer
from tests.support.polling import wait_until

TABLE = Path(__file__).parents[1] / "e2e/api_table.txt"
OWN, OTHER, ABSENT = OBJECTS = ("staging", "prod", "absent")
HERE = frozenset({"staging"})
NOBODY = ("none", "expired", "revoked")
NO_PLAN = "0" * 64
EXPERIMENT = """
version: 1
name: busy-{where}
environment: {where}
steady_state: {{before: 100ms, after: 100ms}}
faults:
  - {{inject: cpu.load, target: "host={host}", with: {{percent: 1, of: own, cores: 0}}, for: 1s}}
"""
HOSTS = {OWN: "app-1", OTHER: "app-2", ABSENT: "app-3"}
Route = tuple[str, str]
Table = dict[Route, dict[str, tuple[int, ...]]]


@dataclass
class World:
    """A server with a host, a run and an approved plan in each of two environments, and somebody of every role."""

    api: ApiServer
    plans: dict[str, str] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def prepare(self) -> None:
        for where in (OWN, OTHER):
            self.api.services.approvals.set_limit(where, BlastLimit(5, 100), 0)
        self.api.user("zed", Grant(Role.AUTHOR), Grant(Role.VIEWER))
        self.api.user("yan", Grant(Role.APPROVER))
        with self.api.client(self.api.token("zed")) as zed:
            for where in (OWN, OTHER):
                body = {"experiment": _text(where), "seed": 1}
                self.plans[where] = _good(zed.post("/plans", json=body))["digest"]
                self.api.services.approvals.approve(self.plans[where], "yan", 3600)
                self.runs[where] = _good(zed.post("/runs", json=body))["run"]
        wait_until(lambda: all(map(self._is_over, self.runs.values())), "the runs", 90)
        self.plans[ABSENT], self.runs[ABSENT] = NO_PLAN, 4711
        self.api.user("everything", *(Grant(role) for role in Role if role is not Role.HALTER))
        for role in Role:
            granted = Role.OPERATOR if role is Role.HALTER else role
            narrow = {"roles": frozenset({role})} if role is Role.HALTER else {}
            for name, grant in ((f"{role}@staging", Grant(granted, HERE)), (role.value, Grant(granted))):
                self.tokens[name] = self.api.token(self.api.user(name, grant), **narrow)
        self.tokens["foreign"] = self.api.token("everything", environments=frozenset({"elsewhere"}))

    def _is_over(self, number: int) -> bool:
        line = self.api.services.run_access.line(number)
        return line is not None and line.verdict is not None

    def token_of(self, user: str) -> str:
        return self.api.row(self.api.token(user)).token_id

    def approval_of(self, where: str) -> int:
        return (
            4711 if where == ABSENT else self.api.services.approvals.approve(self.plans[where], "yan", 60).approval_id
        )

    def user_of(self, caller: str, where: str) -> str:
        """Their own name, somebody else's, nobody's."""
        own = "everything" if caller in {"foreign", *NOBODY} else caller
        return {OWN: own, OTHER: "zed", ABSENT: "absent"}[where]


def _good(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


Request = tuple[str, dict[str, Any]]
"""A path and what is sent with it."""


def _limit(world: World, _: str, where: str) -> Request:
    kept = world.api.services.approvals.limit_of(where)
    headers = {"If-Match": f'"{kept.version}"'}
    return f"/limits/{where}", {"json": {"hosts": 5, "percent": 100.0}, "headers": headers}


def _user(world: World, caller: str, where: str) -> Request:
    name = world.user_of(caller, where)
    user = world.api.services.access.user(name)
    grants = [] if user is None else [{"role": g.role.value, "environments": sorted(g.environments) if g.environments
                                       else None} for g in user.grants]  # fmt: skip
    headers = {"If-Match": f'"{user.version}"' if user else '"1"'}
    return f"/users/{name}", {"json": {"grants": grants}, "headers": headers}


def _text(where: str) -> str:
    return EXPERIMENT.format(where=where, host=HOSTS[where])


def _token(world: World, caller: str, where: str) -> Request:
    if where == ABSENT:
        return "/tokens/000000000000", {}
    return f"/tokens/{world.token_of(world.user_of(caller, where))}", {}


def _new_token(world: World, caller: str, where: str) -> Request:
    return "/tokens", {"json": {} if where == OWN else {"user": world.user_of(caller, where)}}


def _new_user(world: World, *_: str) -> Request:
    return "/users", {"json": {"name": f"u{next(world.numbers)}", "grants": []}}


def _of_run(suffix: str = "", **more: Any) -> Callable[[World, str, str], Request]:
    return lambda world, _, where: (f"/runs/{world.runs[where]}{suffix}", more)


def _plain(path: str, **more: Any) -> Callable[[World, str, str], Request]:
    return lambda *_: (path, more)


def _experiment(_: World, __: str, where: str) -> Request:
    return "/plans", {"json": {"experiment": _text(where), "seed": 1}}


REQUESTS: dict[Route, Callable[[World, str, str], Request]] = {
    ("GET", "/health"): _plain("/health"),
    ("GET", "/openapi.json"): _plain("/openapi.json"),
    ("GET", "/whoami"): _plain("/whoami"),
    ("GET", "/faults"): _plain("/faults"),
    ("GET", "/hosts"): _plain("/hosts"),
    ("GET", "/hosts/{name}"): lambda _, __, where: (f"/hosts/{HOSTS[where]}", {}),
    ("POST", "/join-tokens"): _plain("/join-tokens", json={}),
    ("POST", "/plans"): _experiment,
    ("GET", "/plans/{digest}"): lambda world, _, where: (f"/plans/{world.plans[where]}", {}),
    ("POST", "/runs"): lambda world, _, where: ("/runs", {"json": {"plan": world.plans[where]}}),
    ("GET", "/runs"): _plain("/runs"),
    ("GET", "/runs/{number}"): _of_run(),
    ("GET", "/runs/{number}/report"): _of_run("/report"),
    ("GET", "/runs/{number}/events"): _of_run("/events"),
    ("POST", "/runs/{number}/halt"): _of_run("/halt", json={}),
    ("GET", "/lever"): _plain("/lever"),
    ("POST", "/lever/pull"): _plain("/lever/pull", json={}),
    ("POST", "/lever/release"): _plain("/lever/release"),
    ("POST", "/approvals"): lambda world, _, where: ("/approvals", {"json": {"plan": world.plans[where]}}),
    ("GET", "/approvals"): _plain("/approvals"),
    ("DELETE", "/approvals/{number}"): lambda world, _, where: (f"/approvals/{world.approval_of(where)}", {}),
    ("GET", "/limits/{environment}"): lambda _, __, where: (f"/limits/{where}", {}),
    ("PUT", "/limits/{environment}"): _limit,
    ("GET", "/users"): _plain("/users"),
    ("GET", "/audit"): _plain("/audit"),
    ("GET", "/auth/login"): _plain("/auth/login"),
    ("GET", "/auth/callback"): _plain("/auth/callback"),
    ("POST", "/auth/logout"): _plain("/auth/logout"),
    ("GET", "/auth/cli"): _plain("/auth/cli"),
    ("POST", "/auth/cli"): _plain("/auth/cli"),
    ("POST", "/auth/cli/token"): _plain("/auth/cli/token", json={"code": "x" * 43, "verifier": "x" * 43}),
    ("POST", "/users"): _new_user,
    ("GET", "/users/{name}"): lambda world, caller, where: (f"/users/{world.user_of(caller, where)}", {}),
    ("PUT", "/users/{name}"): _user,
    ("GET", "/tokens"): _plain("/tokens"),
    ("POST", "/tokens"): _new_token,
    ("DELETE", "/tokens/{token_id}"): _token,
}


def routes_of(api: ApiServer) -> dict[Route, str]:
    """Every route of the app, with the permission that it declares."""
    found: dict[Route, str] = {}
    for route in guarded_routes(create_app(api.services)):
        asked = declared(route.dependant)
        assert asked is not None
        word = asked.permission.word if asked.permission else "open"
        found |= {(method, route.path.removeprefix("/api/v1")): word for method in route.methods}
    return found


def audited(world: World, since: int, word: str) -> bool:
    """Whether the auditor was told of a decision on this permission since then."""
    return word == "open" or any(entry.action == word for entry in world.api.audit.entries[since:])


def ask(world: World, routes: dict[Route, str]) -> Table:
    """Ask everything."""
    table: Table = {route: {} for route in routes}
    for caller, token in world.tokens.items():
        with world.api.client(token) as client:
            for route, word in routes.items():
                for where in OBJECTS:
                    since = len(world.api.audit.entries)
                    status = _status(world, client, route, caller, where)
                    table[route][caller] = (*table[route].get(caller, ()), status)
                    assert audited(world, since, word), f"not audited: {caller} at {route} for {where}"
                if table[route][caller][0] == 200 and route[1] == "/lever/pull":
                    world.api.run(world.api.services.controller.lever.release("test"))
    cases = [(caller, route, where) for caller in NOBODY for route in routes for where in OBJECTS]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda case: _stranger(world, *case), cases))
    strangers = [entry for entry in world.api.audit.refusals() if entry.origin.startswith("127.9.")]
    assert len(strangers) == sum(routes[route] != "open" for _, route, _ in cases), "every stranger is audited"
    for (caller, route, _), status in zip(cases, answers, strict=True):
        table[route][caller] = (*table[route].get(caller, ()), status)
    return table


def _stranger(world: World, caller: str, route: Route, where: str) -> int:
    """Each from an address of its own, or guessing would be noticed."""
    token = ""
    if caller != "none":
        token = world.api.token("everything", ttl_s=-1 if caller == "expired" else 60)
    if caller == "revoked":
        world.api.services.access.revoke_token(world.api.row(token).token_id)
    number = next(world.numbers)
    with world.api.client(token, f"127.9.{number // 250}.{number % 250 + 1}") as client:
        return _status(world, client, route, caller, where)


def _status(world: World, client: httpx.Client, route: Route, caller: str, where: str) -> int:
    path, sent = REQUESTS[route](world, caller, where)
    answer = client.request(route[0], path, **sent)
    assert answer.status_code < 500, (route, caller, where, answer.text)
    return answer.status_code


def render(table: Table, routes: dict[Route, str]) -> str:
    """The table as it is written: those who get the same answers stand in one line."""
    lines = [
        "# Every route, everybody, and what is answered: for an object of staging, one of prod, and an absent one.",
        "# ROLE@staging has its role in environment staging only, ROLE everywhere; `foreign` all roles, and a token",
        "# that is for another environment only.",
    ]
    for route in sorted(routes, key=lambda one: (one[1], one[0])):
        lines.append(f"\n{route[0]} {route[1]}   {routes[route]}")
        groups: dict[tuple[int, ...], list[str]] = {}
        for caller, statuses in table[route].items():
            groups.setdefault(statuses, []).append(caller)
        for statuses, callers in sorted(groups.items()):
            lines.append(f"  {' '.join(map(str, statuses))}   {' '.join(callers)}")
    return "\n".join(lines) + "\n"


@contextmanager
def world_in(folder: Path) -> Iterator[World]:
    """The server with everything that is asked about."""
    with ExitStack() as stack:
        api = stack.enter_context(ApiServer(folder))
        for where in (OWN, OTHER):
            stack.enter_context(api.add_host(HOSTS[where], where))
        world = World(api)
        world.prepare()
        yield world


def found_in(world: World) -> str:
    """Ask everything, and render what was answered."""
    routes = routes_of(world.api)
    assert set(routes) == set(REQUESTS), "a route has no row: say in REQUESTS how it is asked"
    return render(ask(world, routes), routes)


def main() -> None:
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, world_in(Path(folder)) as world:
        TABLE.write_text(found_in(world))
    print(f"{TABLE}, in {time.monotonic() - begun_s:.0f} s")


if __name__ == "__main__":
    main()
