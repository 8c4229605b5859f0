"""validate, plan, run: from a file to its end."""

import asyncio
import getpass
import os
import secrets
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from brownout_controller.cli import remote, remote_runs
from brownout_controller.cli import validate as checking
from brownout_controller.cli.auditing import local_entry
from brownout_controller.cli.fleet_access import Access, open_store, reach
from brownout_controller.cli.live import Live
from brownout_controller.cli.output import Format, ascii_only, console, fail, progress, show_one
from brownout_controller.cli.remote_runs import Asked
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
from brownout_controller.reporting.console import summary
from brownout_controller.reporting.files import FORMATS, write_reports
from brownout_controller.reporting.plan import plan_document, plan_summary
from brownout_controller.reporting.visible import visible
from brownout_controller.running.conclusion import Conclusion
from brownout_controller.running.hosts import view_of
from brownout_controller.running.manager import ActiveRun, CannotBegin, RunManager
from brownout_controller.serving import Controller

SEED_BITS = 32

File = Annotated[Path, typer.Argument(help="the experiment, a YAML file", readable=False)]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="chooses the same hosts again; random if not given")]


def validate(
    files: Annotated[list[Path], typer.Argument(help="experiment files", readable=False)],
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
    if (server := remote.chosen()) is not None:
        remote.refuse_local(listen=listen, label=label)
        remote_runs.plan(server, Asked(checked, pairs(var, "a variable"), seed), output)
        return
    access = Access(data_dir, listen, wait_hosts, wait_timeout, pairs(label, "a label"))
    made = asyncio.run(_plan(checked, access, _seed(seed)))
    if output is Format.NAME:
        print(made.digest)
    elif output is Format.TABLE:
        console().print(plan_summary(made))
    else:
        show_one(plan_document(made), output)


def run(
    file: Annotated[Path | None, typer.Argument(help="the experiment, a YAML file", readable=False)] = None,
    data_dir: DataDir = default_data_dir(),
    var: Variables = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    listen: Listen = "",
    wait_hosts: WaitHosts = 1,
    wait_timeout: WaitTimeout = 30.0,
    seed: Seed = None,
    report_dir: Annotated[
        Path, typer.Option("--report-dir", help="where reports are written", readable=False)
    ] = Path(),
    report: Annotated[str, typer.Option("--report", help=f"formats, of {', '.join(FORMATS)}")] = "html",
    plan_digest: Annotated[
        str,
        typer.Option("--plan", metavar="DIGEST", help="with --server: a plan that was made there, instead of a file"),
    ] = "",
) -> None:
    """Run an experiment: on this machine with nothing set up, or with --listen on hosts that joined.

    Ctrl-C once halts the run and undoes every fault; twice leaves the undoing to the hosts, which do it by themselves.
    With --server the run is the controller's: Ctrl-C leaves it alone, and `brownout halt` ends it.
    """
    formats = _formats(report)
    if (server := remote.chosen()) is not None:
        remote.refuse_local(listen=listen, label=label)
        asked = _asked(file, var, seed, plan_digest)
        _check_writable(report_dir)
        raise typer.Exit(int(remote_runs.run(server, asked, report_dir, formats)))
    if file is None or plan_digest:
        fail(ExitCode.USAGE, "usage", "give one experiment file; --plan goes with --server", "brownout run FILE")
    checked = _load(file, var)
    access = Access(data_dir, listen, wait_hosts, wait_timeout, pairs(label, "a label"))
    _check_writable(report_dir)
    try:
        code = asyncio.run(_run(checked, access, _seed(seed), report_dir, formats))
    except KeyboardInterrupt:
        fail(ExitCode.HALTED, "halted", "Ctrl-C before the run began; nothing was injected")
    raise typer.Exit(int(code))


def _asked(file: Path | None, var: list[str], seed: int | None, digest: str) -> Asked:
    if (file is None) == (not digest):
        fail(ExitCode.USAGE, "usage", "give either an experiment file or --plan DIGEST", "brownout plan FILE")
    if file is None:
        if var or seed is not None:
            fail(ExitCode.USAGE, "usage", "--var and --seed belong to a file; a plan has its own")
        return Asked(None, {}, None, digest)
    return Asked(_load(file, var), pairs(var, "a variable"), seed)


async def _plan(checked: Checked, access: Access, seed: int) -> Plan:
    with open_store(access.data_dir) as store:
        async with reach(access, store) as controller:
            return _make_plan(checked, controller, seed, access)


async def _run(checked: Checked, access: Access, seed: int, report_dir: Path, formats: tuple[str, ...]) -> ExitCode:
    with open_store(access.data_dir) as store:
        async with reach(access, store) as controller:
            made = _make_plan(checked, controller, seed, access)
            live = Live(made, progress())
            manager = RunManager(controller.fleet, store, controller.controller_id, controller.lever)
            async with controller.lever.obeying(manager):
                entry = local_entry("run.start", f"plan {made.digest}", experiment=made.experiment.name)
                await asyncio.to_thread(controller.audit.record, entry)
                try:
                    run = await manager.begin(made, _operator(), live.take)
                except CannotBegin as error:
                    fail(ExitCode.REFUSED, "cannot-begin", f"{error}. Nothing was injected.")
                conclusion = await _until_over(run, live)
        return _show(conclusion, report_dir, formats)


async def _until_over(run: ActiveRun, live: Live) -> Conclusion:
    """The run's end; after a second Ctrl-C, how it stood when it was let go."""

    def interrupted() -> None:
        if not run.engine.machine.stopped_by:
            run.halt("Ctrl-C")
            return
        progress().print("let go: agents and injectors undo what is still on by themselves, at the end of their lease")
        run.let_go()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    showing = asyncio.create_task(live.show(run.engine))
    try:
        return await run.over()
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


def _show(conclusion: Conclusion, report_dir: Path, formats: tuple[str, ...]) -> ExitCode:
    """Report and print. What cannot be kept or written is said, and is never a plain 0."""
    if conclusion.refused:
        print_refusal(conclusion.refused)
        return conclusion.exit_code
    record, findings = conclusion.record, conclusion.findings
    trouble = [f"the run's record is not kept: {conclusion.trouble}"] if conclusion.trouble else []
    written: list[Path] = []
    try:
        written = write_reports(record, findings, report_dir, formats)
    except OSError as error:
        trouble.append(f"the reports are not written: {error}")
    out = console()
    out.print(summary(record, findings, [str(path) for path in written], ascii_only=ascii_only(out)))
    for line in trouble:
        progress().print(f"error[not-kept]: {visible(line)}")
    return ExitCode.INTERNAL_ERROR if trouble and findings.exit_code is ExitCode.HELD else findings.exit_code


def print_refusal(reasons: tuple[str, ...]) -> None:
    """Say that nothing was injected since the system was not steady before the first fault."""
    err = progress()
    err.print("error[not-steady]: the expectations do not hold before the first fault, so nothing was injected")
    for reason in reasons:
        err.print(f"  = {reason}")


def _check_writable(report_dir: Path) -> None:
    """Before anything is injected: a run whose report has no place is not worth its faults."""
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=report_dir):
            pass
    except OSError as error:
        message = f"reports cannot be written to {report_dir}: {error.strerror}; nothing was injected"
        fail(ExitCode.REFUSED, "report-dir", message, "choose another --report-dir")


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have
        return f"uid {os.getuid()}"


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
