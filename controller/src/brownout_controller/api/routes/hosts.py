"""Hosts: who is connected, what each can do, and tokens by which others join."""

from typing import Annotated, Any

from brownout_controller.access.permissions import Permission
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.planning import place_of_host
from brownout_controller.api.routes.common import Here, HostName, page, router
from brownout_controller.api.shapes import NewJoinToken
from brownout_controller.fleet.sessions import HostState
from brownout_controller.running.hosts import view_of

routes = router("hosts")


@routes.get("/hosts")
def list_hosts(here: Here, caller: Annotated[Caller, needs(Permission.HOST_READ)]) -> dict[str, Any]:
    """The connected hosts that one may see."""
    views = [(host, view_of(host)) for host in here.fleet.connected]
    return page([_line(host) for host, view in views if caller.may(Permission.HOST_READ, place_of_host(view))])


@routes.get("/hosts/{name}")
def show_host(name: HostName, here: Here, caller: Annotated[Caller, needs(Permission.HOST_READ)]) -> dict[str, Any]:
    """One connected host, and what it can do."""
    subject = f"host {name}"
    host = next((host for host in here.fleet.connected if host.name == name), None)
    if host is None:
        caller.missing(subject)
    caller.demand(place_of_host(view_of(host)), subject, Permission.HOST_READ)
    able = [
        {"kind": kind, "able": found.able, "reason": found.reason, "remedy": found.remedy}
        for kind, found in sorted(host.able.items())
    ]
    return {**_line(host), "faults": able}


@routes.post("/join-tokens", status_code=201)
def create_join_token(
    body: NewJoinToken, here: Here, caller: Annotated[Caller, needs(Permission.HOST_ENROL)]
) -> dict[str, Any]:
    """A token by which one host joins, and the hash of the authority that it must find here."""
    token = here.controller.identities.create_token(body.ttl_s)
    return {"token": token, "ca_pin": here.controller.authority.pin, "ttl_s": body.ttl_s}


def _line(host: HostState) -> dict[str, Any]:
    view = view_of(host)
    return {
        "name": view.name,
        "labels": dict(view.labels),
        "version": view.agent_version,
        "environment": view.environment,
        "clock_error_ms": view.clock_error_ms,
        "policy": view.policy,
        "injector": view.injector_attached,
    }
