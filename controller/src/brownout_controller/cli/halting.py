"""halt, resume: the lever of a data directory. Neither ever asks a question."""

import asyncio
import time
from typing import Annotated

import typer

from brownout_controller.audit.entry import Auditor
from brownout_controller.cli import remote, remote_runs
from brownout_controller.cli.auditing import audit_of_stopping, local_actor, local_audit, local_entry
from brownout_controller.cli.fleet_access import open_store
from brownout_controller.cli.output import fail, progress
from brownout_controller.cli.settings import DataDir, default_data_dir
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.reporting.visible import visible
from brownout_controller.running.halting import Halting, HaltLever
from brownout_controller.store.database import StoreError
from brownout_controller.store.levers import Levers, NoSuchRun
from brownout_controller.store.store import Store

RUN_OVER_WITHIN_S = 60.0
"""A run that is halted waits for its hosts, also for one that is away, and then for the last words of its probes."""
_LOOK_EVERY_S = 0.2
_BY_HAND = "on each host: brownout-injector halt"


def halt(
    run: Annotated[int | None, typer.Argument(help="the run's number; see `brownout runs list`")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every run and every host, and let no run begin")] = False,
    reason: Annotated[str, typer.Option("--reason", help="told to everybody who asks why")] = "",
    data_dir: DataDir = default_data_dir(),
) -> None:
    """End faults now: those of one run, or everything on every host, until `brownout resume`.

    Exit code 13 when a host did not confirm that it is clean.
    """
    if (run is None) != everything:
        fail(ExitCode.USAGE, "usage", "say which: a run's number, or --all", "brownout runs list")
    if (server := remote.chosen()) is not None:
        code = _show(remote_runs.halt_all(server, reason)) if run is None else remote_runs.halt_run(server, run, reason)
        raise typer.Exit(int(code))
    try:
        store = Store(data_dir)
    except StoreError as error:
        fail(ExitCode.UNDO_NOT_CONFIRMED, "not-halted", str(error), _BY_HAND)
    try:
        with audit_of_stopping(store, data_dir) as audit:
            code = asyncio.run(_halt_all(store, reason, audit)) if run is None else _halt_run(store, run, reason, audit)
    except StoreError as error:
        fail(ExitCode.UNDO_NOT_CONFIRMED, "not-halted", str(error), _BY_HAND)
    finally:
        store.close()
    raise typer.Exit(int(code))


def resume(data_dir: DataDir = default_data_dir()) -> None:
    """Let runs begin again after `brownout halt --all`."""
    if (server := remote.chosen()) is not None:
        released = remote_runs.resume(server)
    else:
        with open_store(data_dir) as store, local_audit(store, data_dir) as audit:
            released = asyncio.run(_release(store, audit))
    print(f"released: {visible(released)}" if released else "nothing was halted")


async def _halt_all(store: Store, reason: str, audit: Auditor) -> ExitCode:
    progress().print("halting everything; waiting for every host to say that it is clean")
    return _show(await HaltLever(store.database, Fleet(), audit).pull(reason, local_actor()))


async def _release(store: Store, audit: Auditor) -> str:
    lever = await HaltLever(store.database, Fleet(), audit).release(local_actor())
    return str(lever) if lever else ""


def _show(halting: Halting) -> ExitCode:
    for host in halting.confirmed:
        print(f"clean          {visible(host)}")
    for name, why in halting.unconfirmed.items():
        print(f"NOT CONFIRMED  {visible(name)}: {visible(why)}")
    print(f"halted         {visible(halting.lever)}; no run begins until: brownout resume")
    if halting.unconfirmed:
        progress().print(f"error[not-confirmed]: not every host is known to be clean\n  = next: {_BY_HAND}")
        return ExitCode.UNDO_NOT_CONFIRMED
    if halting.trouble:
        fail(ExitCode.INTERNAL_ERROR, "not-kept", f"the halt is not kept, so runs may begin: {halting.trouble}")
    return ExitCode.HELD


def _halt_run(store: Store, run: int, reason: str, audit: Auditor) -> ExitCode:
    levers = Levers(store.database)
    audit.record_later(local_entry("run.halt", f"run {run}", reason=reason))
    try:
        levers.pull(reason, local_actor(), run)
    except NoSuchRun as error:
        fail(ExitCode.USAGE, "no-run", str(error))
    deadline_s = time.monotonic() + RUN_OVER_WITHIN_S
    while (code := levers.exit_code(run)) is None:
        if time.monotonic() > deadline_s:
            message = f"run {run} was told to end and goes on after {RUN_OVER_WITHIN_S:g} s, or its controller died"
            fail(ExitCode.UNDO_NOT_CONFIRMED, "not-confirmed", message, _BY_HAND)
        time.sleep(_LOOK_EVERY_S)
    if code == ExitCode.UNDO_NOT_CONFIRMED:
        message = f"run {run} is over, and not everything of it is known to be undone"
        fail(ExitCode.UNDO_NOT_CONFIRMED, "not-confirmed", message, f"brownout runs show {run}")
    print(f"run {run} is over, and everything of it is undone")
    return ExitCode.HELD
