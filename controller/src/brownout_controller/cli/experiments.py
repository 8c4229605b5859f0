"""validate, plan, run: from a file to its end."""

import asyncio
import getpass
import secrets
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from brownout_controller.analysis.verdict import judge
from brownout_controller.cli import validate as checking
from brownout_controller.cli.fleet_access import Access, open_store, reach
from brownout_controller.cli.live import Live
from brownout_controller.cli.output import Format, ascii_only, console, fail, progress, show_one
from brownout_controller.cli.settings import (
    DataDir,
    Labels,
    Listen,
    Output,
    Variables,
    WaitHosts,
    WaitTimeout,
    default_data_dir,
    pairs,
)
from brownout_controller.cli.validate import OutputFormat
from brownout_controller.exit_codes import ExitCode
from brownout_controller.language import Checked, InvalidExperiment, check
from brownout_controller.language.diagnostics import render_all
from brownout_controller.language.source import read_source
from brownout_controller.planning.plan import Plan, PlanRefused, make_plan
from brownout_controller.record import Event, RunRecord
from brownout_controller.reporting.console import summary
from brownout_controller.reporting.document import to_document
from brownout_controller.reporting.files import FORMATS, write_reports
from brownout_controller.reporting.plan import plan_document, plan_summary
from brownout_controller.running.engine import Engine, Outcome
from brownout_controller.running.hosts import view_of
from brownout_controller.serving import Controller
from brownout_controller.store.store import Store

SEED_BITS = 32
_KEEP_EVENTS_EVERY_S = 1.0

File = Annotated[Path, typer.Argument(help="the experiment, a YAML file")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="chooses the same hosts again; random if not given")]


def validate(
    files: Annotated[list[Path], typer.Argument(help="experiment files")],
    var: Variables = [],  # noqa: B006 - typer wants a literal default
    output_format: Annotated[
        OutputFormat, typer.Option("--output-format", help="for people, one a line, for GitHub Actions, for programs")
    ] = OutputFormat.FULL,
) -> None:
    """Check experiment files; nothing is sent anywhere."""
    text, code = checking.validate(files, pairs(var, "a variable"), output_format)
    print(text)
    raise typer.Exit(int(code))


def plan(
    file: File,
    data_dir: DataDir = default_data_dir(),
    var: Variables = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    listen: Listen = "",
    wait_hosts: WaitHosts = 1,
    wait_timeout: WaitTimeout = 30.0,
    seed: Seed = None,
    output: Output = Format.TABLE,
) -> None:
    """Resolve targets and vantages against the fleet; nothing is injected."""
    checked = _load(file, var)
    access = Access(data_dir, listen, wait_hosts, wait_timeout, pairs(label, "a label"))
    made = asyncio.run(_plan(checked, access, _seed(seed)))
    if output is Format.NAME:
        print(made.digest)
    elif output is Format.TABLE:
        console().print(plan_summary(made))
    else:
        show_one(plan_document(made), output)


def run(
    file: File,
    data_dir: DataDir = default_data_dir(),
    var: Variables = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    listen: Listen = "",
    wait_hosts: WaitHosts = 1,
    wait_timeout: WaitTimeout = 30.0,
    seed: Seed = None,
    report_dir: Annotated[Path, typer.Option("--report-dir", help="where reports are written")] = Path(),
    report: Annotated[str, typer.Option("--report", help=f"formats, of {', '.join(FORMATS)}")] = "html",
) -> None:
    """Run an experiment: on this machine with nothing set up, or with --listen on hosts that joined.

    Ctrl-C once halts the run and undoes every fault; twice leaves the undoing to the hosts, which do it by themselves.
    """
    checked = _load(file, var)
    formats = _formats(report)
    access = Access(data_dir, listen, wait_hosts, wait_timeout, pairs(label, "a label"))
    code = asyncio.run(_run(checked, access, _seed(seed), report_dir, formats))
    raise typer.Exit(int(code))


async def _plan(checked: Checked, access: Access, seed: int) -> Plan:
    store = open_store(access.data_dir)
    async with reach(access, store) as controller:
        return _make_plan(checked, controller, seed, access)


async def _run(checked: Checked, access: Access, seed: int, report_dir: Path, formats: tuple[str, ...]) -> ExitCode:
    store = open_store(access.data_dir)
    async with reach(access, store) as controller:
        made = _make_plan(checked, controller, seed, access)
        operator = getpass.getuser()
        number = store.begin_run(made.experiment.name, operator, made.digest, time.time_ns())
        keeper = _EventKeeper(store, number)
        live = Live(made, progress())
        engine = Engine(made, controller.fleet, controller.epoch, str(number), operator, _both(keeper.take, live.take))
        outcome = await _until_over(engine, live, keeper)
        if outcome is None:
            return _detached(made)
    return _conclude(outcome, store, number, report_dir, formats)


async def _until_over(engine: Engine, live: Live, keeper: "_EventKeeper") -> Outcome | None:
    """The run's outcome, or None when a second Ctrl-C let go of it."""
    let_go = asyncio.Event()

    def interrupted() -> None:
        if engine.machine.stopped_by:
            let_go.set()
        else:
            engine.halt("Ctrl-C")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    running = asyncio.create_task(engine.run())
    helpers = [asyncio.create_task(live.show(engine)), asyncio.create_task(keeper.keep())]
    letting_go = asyncio.create_task(let_go.wait())
    try:
        await asyncio.wait({running, letting_go}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        for task in (running, letting_go, *helpers):
            task.cancel()
        await asyncio.gather(running, letting_go, *helpers, return_exceptions=True)
        keeper.flush()


def _conclude(outcome: Outcome, store: Store, number: int, report_dir: Path, formats: tuple[str, ...]) -> ExitCode:
    record = outcome.record
    if outcome.refused and not record.stopped_by:
        headline = f"not steady before the first fault: {outcome.refused[0]}"
        store.finish_run(number, _document(record), "refused", int(ExitCode.REFUSED), headline)
        print_refusal(outcome.refused)
        return ExitCode.REFUSED
    findings = judge(record)
    written = write_reports(record, findings, report_dir, formats)
    store.finish_run(number, _document(record), findings.verdict, int(findings.exit_code), findings.headline)
    out = console()
    out.print(summary(record, findings, [str(path) for path in written], ascii_only=ascii_only(out)))
    return findings.exit_code


def print_refusal(reasons: tuple[str, ...]) -> None:
    """Say that nothing was injected since the system was not steady before the first fault."""
    err = progress()
    err.print("error[not-steady]: the expectations do not hold before the first fault, so nothing was injected")
    for reason in reasons:
        err.print(f"  = {reason}")


def _document(record: RunRecord) -> dict[str, Any]:
    return to_document(record, judge(record))


def _detached(made: Plan) -> ExitCode:
    hosts = ", ".join(sorted({host for fault in made.faults for host in fault.hosts}))
    message = f"let go while faults may still be on: {hosts} undo them by themselves within their lease"
    fail(ExitCode.UNDO_NOT_CONFIRMED, "detached", message, "on each host: brownout-injector reap")


def _load(file: Path, var: list[str]) -> Checked:
    try:
        checked = check(read_source(file), pairs(var, "a variable"))
    except InvalidExperiment as error:
        progress().print(f"{error}\nNothing was sent.")
        raise typer.Exit(int(ExitCode.INVALID_FILE)) from None
    if checked.warnings:
        progress().print(render_all(checked.warnings, checked.source))
    return checked


def _make_plan(checked: Checked, controller: Controller, seed: int, access: Access) -> Plan:
    try:
        return make_plan(checked.experiment, [view_of(host) for host in controller.fleet.connected], seed)
    except PlanRefused as refused:
        err = progress()
        for problem in refused.problems:
            err.print(f"error[{problem.code}]: {problem.message}")
            if problem.help:
                err.print(f"  = {problem.help}")
        if not access.listen and any(problem.code == "no-target" for problem in refused.problems):
            err.print("  = this machine is the only host here; give it a label: --label role=app")
        err.print("Nothing was injected.")
        raise typer.Exit(int(ExitCode.REFUSED)) from None


def _seed(chosen: int | None) -> int:
    return secrets.randbits(SEED_BITS) if chosen is None else chosen


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise typer.BadParameter(f"--report {unknown[0]}: not one of {', '.join(FORMATS)}")
    return formats


class _EventKeeper:
    """Keeps events in the store about once a second, off the event loop."""

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self._number = number
        self._kept = 0
        self._fresh: list[Event] = []

    def take(self, event: Event) -> None:
        self._fresh.append(event)

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_EVENTS_EVERY_S)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._store.append_events(self._number, self._kept, fresh)
        self._kept += len(fresh)


def _both(first: Any, second: Any) -> Any:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell
