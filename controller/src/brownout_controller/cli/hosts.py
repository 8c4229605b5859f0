"""hosts list, agents, revoke, and doctor: who is there, who may come, and what each can do."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from brownout_controller.audit.entry import Outcome
from brownout_controller.cli import remote
from brownout_controller.cli.auditing import local_audit, local_entry
from brownout_controller.cli.fleet_access import Access, open_store, reach
from brownout_controller.cli.output import Format, fail, show
from brownout_controller.cli.settings import (
    DataDir,
    Labels,
    Listen,
    Output,
    WaitHosts,
    WaitTimeout,
    default_data_dir,
    pairs,
)
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.sessions import HostState
from brownout_controller.running.hosts import view_of
from brownout_controller.store.identities import AgentLine, Identities

app = typer.Typer(help="The hosts of the fleet.", no_args_is_help=True)


@app.command("list")
def list_hosts(
    data_dir: DataDir = default_data_dir(),
    label: Labels = [],  # noqa: B006
    listen: Listen = "",
    wait_hosts: WaitHosts = 1,
    wait_timeout: WaitTimeout = 10.0,
    output: Output = Format.TABLE,
) -> None:
    """Every connected host, its labels, policy, and how well its clock is known."""
    if (server := remote.chosen()) is not None:
        remote.refuse_local(listen=listen, label=label)
        rows = [{**row, "labels": _labels(row["labels"])} for row in _remote_hosts(server)]
    else:
        access = Access(data_dir, listen, wait_hosts, wait_timeout, pairs(label, "a label"))
        rows = asyncio.run(_ask(access, _describe))
    where = ("controller",) if server is not None else ()
    show(rows, ("name", "labels", "version", "environment", "clock_error_ms", *where, "policy"), output, "name")


@app.command("agents")
def list_agents(data_dir: DataDir = default_data_dir(), output: Output = Format.TABLE) -> None:
    """Every agent that ever joined: when it was here last, how long its certificate is good, and who was turned out."""
    with open_store(data_dir) as store:
        rows = [_line(one) for one in Identities(store.database).agents()]
    show(rows, ("host", "agent_id", "seen", "expires", "standing", "reason"), output, "agent_id")


@app.command()
def revoke(
    host: Annotated[str, typer.Argument(help="a host's name, or one agent's id")],
    data_dir: DataDir = default_data_dir(),
    reason: Annotated[str, typer.Option("--reason", help="is kept, and told to the agent")] = "turned out by hand",
) -> None:
    """Turn a host's agent out: its stream is cut within 2 s, its faults end with their lease, it cannot come back."""
    with open_store(data_dir) as store, local_audit(store, data_dir) as audit:
        identities = Identities(store.database)
        audit.record(local_entry("host.revoke", host, why=reason))
        revoked = identities.revoke(host, reason)
        known = sorted({one.host for one in identities.agents() if one.host and one.withdrawn_as != "revoked"})
        if not revoked:
            audit.record(local_entry("host.revoke", host, Outcome.FAILED, "there is no such agent to revoke"))
    if not revoked:
        fail(ExitCode.REFUSED, "no-agent", f"no agent of `{host}` can be revoked; hosts: {', '.join(known) or 'none'}",
             "brownout hosts agents")  # fmt: skip
    for agent_id in revoked:
        print(agent_id)


def _line(one: AgentLine) -> dict[str, Any]:
    gone = one.expires_ns is None or one.expires_ns < time.time_ns()
    return {
        "host": one.host or "(never seen)",
        "agent_id": one.agent_id,
        "seen": _when(one.seen_ns),
        "expires": _when(one.expires_ns),
        "standing": one.withdrawn_as or ("expired" if gone else "good"),
        "reason": one.withdrawn_reason or "",
    }


def _when(at_ns: int | None) -> str | None:
    return None if at_ns is None else datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="seconds")


def doctor(
    host: Annotated[str | None, typer.Argument(help="one host; all that are connected if left out")] = None,
    data_dir: DataDir = default_data_dir(),
    listen: Listen = "",
    wait_hosts: WaitHosts = 1,
    wait_timeout: WaitTimeout = 10.0,
    output: Output = Format.TABLE,
) -> None:
    """What each host can do, and where it cannot: why, and what would help."""
    if (server := remote.chosen()) is not None:
        remote.refuse_local(listen=listen)
        rows = _remote_faults(server)
    else:
        rows = asyncio.run(_ask(Access(data_dir, listen, wait_hosts, wait_timeout), _diagnose))
    if host is not None:
        names = sorted({row["host"] for row in rows})
        rows = [row for row in rows if row["host"] == host]
        if not rows:
            fail(ExitCode.REFUSED, "no-host", f"`{host}` is not connected; connected: {', '.join(names)}")
    show(rows, ("host", "kind", "able", "reason", "remedy"), output, "kind")


def _remote_hosts(server: remote.Server) -> list[dict[str, Any]]:
    with remote.connect(server) as api:
        items: list[dict[str, Any]] = api.get("/hosts")["items"]
        return items


def _remote_faults(server: remote.Server) -> list[dict[str, Any]]:
    with remote.connect(server) as api:
        hosts = [api.get(f"/hosts/{one['name']}") for one in api.get("/hosts")["items"]]
    return [
        {"host": one["name"], **fault, "able": "yes" if fault["able"] else "no"}
        for one in hosts
        for fault in one["faults"]
    ]


async def _ask(access: Access, describe: Any) -> list[dict[str, Any]]:
    with open_store(access.data_dir) as store:
        async with reach(access, store) as controller:
            return [row for host in controller.fleet.connected for row in describe(host)]


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _describe(host: HostState) -> list[dict[str, Any]]:
    view = view_of(host)
    error = view.clock_error_ms
    row = {
        "name": view.name,
        "labels": _labels(view.labels),
        "version": view.agent_version,
        "environment": view.environment,
        "clock_error_ms": None if error is None else round(error, 3),
        "policy": view.policy,
        "injector": view.injector_attached,
    }
    return [row]


def _diagnose(host: HostState) -> list[dict[str, Any]]:
    return [
        {
            "host": host.name,
            "kind": kind,
            "able": "yes" if found.able else "no",
            "reason": found.reason,
            "remedy": found.remedy,
        }
        for kind, found in sorted(host.able.items())
    ]
