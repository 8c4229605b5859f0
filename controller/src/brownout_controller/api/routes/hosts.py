"""Hosts: who is connected, what each can do, and tokens by which others join."""

import json
from typing import Annotated, Any

from brownout_controller.access.decisions import Place
from brownout_controller.access.permissions import Permission
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.routes.common import Here, HostName, page, router
from brownout_controller.api.services import Services
from brownout_controller.api.shapes import NewJoinToken
from brownout_controller.running.hosts import shown

routes = router("hosts")


@routes.get("/hosts")
def list_hosts(here: Here, caller: Annotated[Caller, needs(Permission.HOST_READ)]) -> dict[str, Any]:
    """The connected hosts that one may see, and to which controller each is connected."""
    rows = [row for row in _rows(here) if caller.may(Permission.HOST_READ, _place(row))]
    return page([_line(row) for row in sorted(rows, key=lambda row: (row["name"], row["controller"]))])


@routes.get("/hosts/{name}")
def show_host(name: HostName, here: Here, caller: Annotated[Caller, needs(Permission.HOST_READ)]) -> dict[str, Any]:
    """One connected host, and what it can do."""
    subject = f"host {name}"
    row = next((row for row in _rows(here) if row["name"] == name), None)
    if row is None:
        caller.missing(subject)
    caller.demand(_place(row), subject, Permission.HOST_READ)
    return row


@routes.post("/join-tokens", status_code=201)
def create_join_token(
    body: NewJoinToken, here: Here, caller: Annotated[Caller, needs(Permission.HOST_ENROL)]
) -> dict[str, Any]:
    """A token by which one host joins, and the hash of the authority that it must find here."""
    token = here.controller.identities.create_token(body.ttl_s)
    return {"token": token, "ca_pin": here.controller.authority.pin, "ttl_s": body.ttl_s}


def _rows(here: Services) -> list[dict[str, Any]]:
    """This controller's hosts, then those of the others on its database."""
    own = here.controller
    theirs = own.owners.elsewhere(own.controller_id)
    return [{**shown(host), "controller": own.address} for host in here.fleet.connected] + [
        {**json.loads(one.description), "controller": one.controller} for one in theirs
    ]


def _place(row: dict[str, Any]) -> Place:
    return Place(row["environment"], (row["labels"],))


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "faults"}
