"""run, plan, halt, runs and report against a controller that runs elsewhere."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx

from brownout_controller.analysis.verdict import judge
from brownout_controller.cli.live import event_line
from brownout_controller.cli.output import Format, ascii_only, console, fail, progress, show_one
from brownout_controller.cli.remote import TIMEOUT_S, Remote, Server, connect, unreachable
from brownout_controller.exit_codes import ExitCode
from brownout_controller.language import Checked
from brownout_controller.record import Event, EventKind
from brownout_controller.reporting.console import summary
from brownout_controller.reporting.document import from_document
from brownout_controller.reporting.files import write_reports
from brownout_controller.reporting.visible import visible
from brownout_controller.running.halting import Halting
from brownout_controller.store.levers import Lever

INTERRUPTED = 130
"""As a shell says of Ctrl-C (128 + SIGINT): the run itself has no outcome yet."""
RECONNECT_FOR_S = 60.0
_RECONNECT_EVERY_S = 1.0
HALTED_WITHIN_S = 60


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run or plan: an experiment, or the digest of a plan that the controller keeps."""

    checked: Checked | None
    variables: dict[str, str]
    seed: int | None
    plan: str = ""

    def body(self) -> dict[str, Any]:
        """As the API takes it."""
        if self.checked is None:
            return {"plan": self.plan}
        source = {"experiment": self.checked.source.text, "variables": self.variables}
        return source if self.seed is None else {**source, "seed": self.seed}


def plan(server: Server, asked: Asked, output: Format) -> None:
    """Have it planned, and print the plan."""
    with connect(server) as remote:
        made = remote.post("/plans", asked.body())
    if output is Format.NAME:
        print(made["digest"])
    elif output is not Format.TABLE:
        show_one(made, output)
    else:
        for line in _plan_lines(made):
            console().print(visible(line))


def run(server: Server, asked: Asked, report_dir: Path, formats: tuple[str, ...]) -> ExitCode | int:
    """Start, follow to the end, report. Ctrl-C leaves the run alone."""
    with connect(server) as remote:
        # Sent twice, for instance because an answer was lost, it still starts one run.
        begun = remote.post("/runs", asked.body(), headers={"Idempotency-Key": str(uuid.uuid4())})
        number = int(begun["run"])
        progress().print(f"run {number} has begun; Ctrl-C leaves it alone; to end it: brownout halt {number}")
        try:
            _follow(server, remote, number)
        except KeyboardInterrupt:
            progress().print(f"run {number} continues; to end it and undo its faults: brownout halt {number}")
            return INTERRUPTED
        return _conclude(remote, number, report_dir, formats)


def halt_run(server: Server, number: int, reason: str) -> ExitCode:
    """Halt one run and wait until everything of it is undone."""
    with connect(server) as remote:
        body = {"reason": reason, "wait_s": HALTED_WITHIN_S}
        ended = remote.post(f"/runs/{number}/halt", body, timeout=HALTED_WITHIN_S + TIMEOUT_S)
    if ended["verdict"] is None:
        message = f"run {number} was told to end and goes on after {HALTED_WITHIN_S} s, or its controller died"
        fail(ExitCode.UNDO_NOT_CONFIRMED, "not-confirmed", message, "on each host: brownout-injector halt")
    if ended["exit_code"] == ExitCode.UNDO_NOT_CONFIRMED:
        message = f"run {number} is over, and not everything of it is known to be undone"
        fail(ExitCode.UNDO_NOT_CONFIRMED, "not-confirmed", message, f"brownout runs show {number}")
    print(f"run {number} is over, and everything of it is undone")
    return ExitCode.HELD


def halt_all(server: Server, reason: str) -> Halting:
    """Pull the lever."""
    with connect(server) as remote:
        answer = remote.post("/lever/pull", {"reason": reason})
    return Halting(_lever(answer["pulled"]), tuple(answer["confirmed"]), answer["unconfirmed"], answer["trouble"])


def resume(server: Server) -> str:
    """Release the lever; what stood, "" for nothing."""
    with connect(server) as remote:
        released = remote.post("/lever/release")["released"]
    return str(_lever(released)) if released else ""


def runs(server: Server, limit: int) -> list[dict[str, Any]]:
    """The latest runs that we may see."""
    with connect(server) as remote:
        items: list[dict[str, Any]] = remote.get("/runs", limit=min(limit, 200))["items"]
        return items


def document(server: Server, number: int) -> dict[str, Any]:
    """The document of a run that is over."""
    with connect(server) as remote:
        return _document(remote, number)


def _document(remote: Remote, number: int) -> dict[str, Any]:
    found: dict[str, Any] | None = remote.get(f"/runs/{number}")["document"]
    if found is None:
        fail(ExitCode.USAGE, "no-run", f"run {number} has no record yet: it goes on, or its controller died")
    return found


def _conclude(remote: Remote, number: int, report_dir: Path, formats: tuple[str, ...]) -> ExitCode:
    """As a run in this process is concluded. What was refused before the first fault has no summary."""
    line = remote.get(f"/runs/{number}")
    code = ExitCode.UNDO_NOT_CONFIRMED if line["exit_code"] is None else ExitCode(line["exit_code"])
    if line["document"] is None or line["verdict"] == "refused":
        fail(code, str(line["verdict"] or "errored"), line["headline"] or "the run could not be concluded")
    record = from_document(line["document"])
    findings = judge(record)
    written: list[Path] = []
    trouble = ""
    try:
        written = write_reports(record, findings, report_dir, formats)
    except OSError as error:
        trouble = f"the reports are not written: {error}"
    out = console()
    out.print(summary(record, findings, [str(path) for path in written], ascii_only=ascii_only(out)))
    if trouble:
        progress().print(f"error[not-kept]: {visible(trouble)}")
    return ExitCode.INTERNAL_ERROR if trouble and code is ExitCode.HELD else code


def _follow(server: Server, remote: Remote, number: int) -> None:
    for _, kind, one in _events(server, remote, number):
        if kind == "event":
            event = Event(
                one["at_ns"], EventKind(one["kind"]), one["subject"], one["host"], one["message"], detail=one["detail"]
            )
            if (text := event_line(event)) is not None:
                progress().print(text)


def _events(server: Server, remote: Remote, number: int) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """Position, kind and content of each event up to the end; a stream that breaks off is taken up where it was."""
    last: int | None = None
    heard_s = time.monotonic()
    while True:
        try:
            with remote.stream(f"/runs/{number}/events", last) as lines:
                for position, kind, one in parse_events(lines):
                    heard_s = time.monotonic()
                    last = position if position is not None else last
                    if kind == "end" and one["verdict"] is None:
                        break  # another controller carries it, or is to close it
                    yield position, kind, one
                    if kind == "end":
                        return
        except httpx.HTTPError as error:
            if time.monotonic() - heard_s > RECONNECT_FOR_S:
                _lost(server, number, error)
        time.sleep(_RECONNECT_EVERY_S)


def _lost(server: Server, number: int, error: httpx.HTTPError) -> NoReturn:
    progress().print(f"run {number} may go on; without a controller its faults end by themselves")
    unreachable(server, error)


def parse_events(lines: Iterator[str]) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """Server-sent events (WHATWG HTML 9.2.6), of which ours have one line of data each."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            position = int(fields["id"]) if "id" in fields else None
            yield position, fields.get("event", "message"), json.loads(fields["data"])
        fields = {}


def _lever(document: dict[str, Any] | None) -> Lever:
    assert document is not None, "a pull leaves a lever"
    return Lever(1, None, document["reason"], document["by"], document["pulled_ns"])


def _plan_lines(made: dict[str, Any]) -> Iterator[str]:
    yield f"{made['name']}   environment {made['environment']}"
    for fault in made["faults"]:
        where = "chosen at injection" if fault["chosen_at_injection"] else ", ".join(fault["hosts"]) or "no host"
        count = f"{len(fault['hosts'])} of {len(fault['matched'])} matched"
        yield f"  {fault['name']}  {fault['kind']} for {fault['for_ms'] / 1_000:g} s  on {where}  ({count})"
    yield f"  digest  {made['digest']}   seed {made['seed']}"
    if made["approved"]:
        yield "  approved"
    elif made["approval_needed"]:
        yield f"  needs approval: {made['approval_needed']}; an approver: brownout approve {made['digest']}"
    yield f"Nothing was injected. Run exactly this: brownout run --plan {made['digest']}"
