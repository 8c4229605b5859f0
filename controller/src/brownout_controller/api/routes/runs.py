"""Runs: start, follow, halt, and what came of them."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request, Response
from fastapi.responses import JSONResponse

from brownout_controller.access.approvals import Blast, may_start
from brownout_controller.access.permissions import Permission
from brownout_controller.analysis.verdict import judge
from brownout_controller.api import planning
from brownout_controller.api.events import EventStream, PastEvents, end_document
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.planning import Wish
from brownout_controller.api.problems import Problem
from brownout_controller.api.routes.common import Here, Limit, Number, page, router
from brownout_controller.api.routes.plans import refuse_elsewhere
from brownout_controller.api.services import Services
from brownout_controller.api.shapes import Halt, NewRun
from brownout_controller.audit.entry import Outcome
from brownout_controller.language import Experiment
from brownout_controller.planning.plan import Plan
from brownout_controller.reporting.document import from_document
from brownout_controller.reporting.files import render
from brownout_controller.running.hosts import view_of
from brownout_controller.running.manager import CannotBegin
from brownout_controller.store.approvals import KeptPlan
from brownout_controller.store.database import StoreError
from brownout_controller.store.requests import Answer, KeyReused
from brownout_controller.store.store import RunLine, RunUnknown

routes = router("runs")

MediaType = {"html": "text/html", "md": "text/markdown", "json": "application/json"}
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
_LOOK_EVERY_S = 0.5
_BATCHES_MAX = 10
"""So many pages of others' runs are passed over for one page of one's own; `next` goes on from there."""
Before = Annotated[int, Query(ge=1, lt=2**31, description="only runs with a smaller number")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern="^[!-~]+$")]


@routes.post("/runs", status_code=201)
async def start_run(
    request: Request, body: NewRun, here: Here, caller: Annotated[Caller, needs(Permission.RUN_START)], key: Key = None
) -> Response:
    """Start a run and answer at once; the same Idempotency-Key starts it once, however often it is sent."""

    async def start() -> Answer:
        return Answer(201, json.dumps(await _start(body, here, caller)))

    answer = await start() if key is None else await _once(request, here, caller.user, key, start)
    return JSONResponse(json.loads(answer.text), answer.status)


@routes.get("/runs")
def list_runs(
    here: Here, caller: Annotated[Caller, needs(Permission.RUN_READ)], limit: Limit = 20, before: Before = 2**31 - 1
) -> dict[str, Any]:
    """The latest runs that one may see, newest first; `next` is the `before` of the next page, null after the last."""
    found: list[RunLine] = []
    for _ in range(_BATCHES_MAX):
        lines = here.run_access.lines_before(before, limit)
        places = here.run_access.places_of(line.number for line in lines)
        found += [line for line in lines if caller.may(Permission.RUN_READ, places[line.number])]
        before = lines[-1].number if len(lines) == limit else 0
        if len(found) >= limit or not before:
            break
    if len(found) > limit:
        before = found[limit - 1].number
    return {**page([_line(here, line) for line in found[:limit]]), "next": before or None}


@routes.get("/runs/{number}")
def show_run(number: Number, here: Here, caller: Annotated[Caller, needs(Permission.RUN_READ)]) -> dict[str, Any]:
    """One run: how it stands, or, once it is over, its whole document under `document`."""
    line = _demand(number, here, caller)
    document = None
    if line.verdict is not None:
        with suppress(RunUnknown):  # its controller died before it had kept one
            document = here.store.load_document(number)
    return {**_line(here, line), "document": document}


@routes.get("/runs/{number}/report")
def report(
    number: Number,
    here: Here,
    caller: Annotated[Caller, needs(Permission.RUN_READ)],
    form: Annotated[Literal["html", "md", "json"], Query(alias="format")] = "html",
) -> Response:
    """A run's report. As a page it may load nothing and run nothing."""
    _demand(number, here, caller)
    try:
        record = from_document(here.store.load_document(number))
    except RunUnknown as error:
        raise Problem(409, "not-over", "the run has no report yet", str(error), "wait for its end") from error
    text = render(record, judge(record), form)
    return Response(text, media_type=MediaType[form], headers={"Content-Security-Policy": _REPORT_POLICY})


@routes.get("/runs/{number}/events", response_class=Response)
def follow(
    number: Number,
    here: Here,
    caller: Annotated[Caller, needs(Permission.RUN_READ)],
    last: Annotated[str | None, Header(alias="Last-Event-ID", pattern="^[0-9]{1,9}$")] = None,
) -> Any:
    """A run's events as they happen, as server-sent events; `end` is the last. Last-Event-ID resumes.

    Who may not see the run any more is told so by `barred`, and the stream ends.
    """
    line = _demand(number, here, caller)
    first = 0 if last is None else int(last) + 1
    if (run := here.runs.active.get(number)) is not None:
        place = here.run_access.places_of([number])[number]
        return EventStream(run, first, lambda: caller.barred(place, f"run {number}"))
    end = end_document(line.verdict, line.exit_code, line.headline)
    return PastEvents(here.run_access.events_of(number), first, end)


@routes.post("/runs/{number}/halt")
async def halt(
    number: Number, here: Here, caller: Annotated[Caller, needs(Permission.RUN_HALT)], body: Halt | None = None
) -> dict[str, Any]:
    """Halt a run and undo its faults. Answers at once, or when it is over, `wait_s` later at most."""
    asked = body or Halt()
    run = here.runs.active.get(number)
    if run is None:
        await asyncio.to_thread(_halt_elsewhere, number, here, caller, asked.reason)
    else:
        await asyncio.to_thread(caller.demand, planning.place_of_plan(run.plan), f"run {number}", Permission.RUN_READ)
        run.halt(f"halted: by {caller.user}" + (f": {asked.reason}" if asked.reason else ""))
    ended = await _ended(number, here, asked.wait_s)
    return {"run": number, "halted": True, **ended}


async def _ended(number: int, here: Services, wait_s: float) -> dict[str, Any]:
    """How a run ended, if it does in time."""
    deadline_s = time.monotonic() + wait_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        run = here.runs.active.get(number)
        if run is not None:
            await asyncio.wait({run.task}, timeout=left_s)
            continue
        line = await asyncio.to_thread(here.run_access.line, number)
        if line is not None and line.verdict is not None:
            return end_document(line.verdict, line.exit_code, line.headline)
        await asyncio.sleep(_LOOK_EVERY_S)
    return end_document(None, None, None)


async def _start(body: NewRun, here: Services, caller: Caller) -> dict[str, Any]:
    kept = await asyncio.to_thread(_plan_named, body.plan, here, caller)
    if kept is None:
        assert body.experiment is not None, "the body has one of them"
        hosts = await asyncio.to_thread(planning.visible_hosts, here, caller.principal)
        wish = Wish(body.experiment, body.variables, planning.seed_of(body.seed), hosts)
    else:
        wish = Wish.of(kept.request)
    experiment = await planning.read_wish(wish)
    if kept is None:
        await asyncio.to_thread(refuse_elsewhere, caller, experiment.environment)
    plan = await _plan_as_kept(here, wish, experiment, kept)
    blast = planning.blast_of(plan, map(view_of, here.fleet.connected))
    await asyncio.to_thread(_may_start, plan, wish, blast, here, caller, kept)
    return await _begin(plan, here, caller)


async def _plan_as_kept(here: Services, wish: Wish, experiment: Experiment, kept: KeptPlan | None) -> Plan:
    """The plan as the fleet stands; of one that was kept, the same one or none."""
    try:
        plan = await planning.plan_wish(here, wish, experiment)
    except Problem:
        if kept is None:
            raise
        plan = None  # why not, may be about hosts that whoever starts it may not see
    if plan is None or (kept is not None and plan.digest != kept.digest):
        title = "the fleet is not any more as this plan found it; nothing was injected"
        raise Problem(409, "plan-changed", title, "", "make the plan again")
    return plan


def _plan_named(digest: str | None, here: Services, caller: Caller) -> KeptPlan | None:
    if digest is None:
        return None
    kept = here.approvals.plan(digest)
    if kept is None or not caller.may(Permission.PLAN_READ, kept.place):
        caller.missing(f"plan {digest}")
    return kept


def _may_start(plan: Plan, wish: Wish, blast: Blast, here: Services, caller: Caller, kept: KeptPlan | None) -> None:
    """Decide; a plan that lacks only an approval is kept, so that it can be given one."""
    subject = f"run of plan {plan.digest}"
    if kept is None:
        fresh = planning.kept_plan(plan, wish, caller.user)
        made = planning.may_make(caller.principal, plan)
        if not made.allowed:
            caller.refuse(subject, made.reason)
        kept = here.approvals.keep_plan(fresh)
    limit = here.approvals.limit_of(kept.place.environment).limit
    approved = planning.is_approved(here, kept, caller.user)
    decision = may_start(caller.principal, kept.place, blast, limit, approved)
    if not decision.allowed and caller.may(Permission.RUN_START, kept.place):
        caller.tell(Outcome.REFUSED, subject, decision.reason)
        title = "this run needs approval; nothing was injected"
        raise Problem(403, "approval-needed", title, decision.reason, f"an approver: brownout approve {plan.digest}")
    caller.demand_new(decision, subject)


async def _begin(plan: Plan, here: Services, caller: Caller) -> dict[str, Any]:
    try:
        run = await here.runs.begin(plan, caller.user, only_hosts=planning.faulted(plan))
    except CannotBegin as error:
        raise Problem(
            409, "busy", "no run begins now; nothing was injected", str(error), "brownout runs list"
        ) from error
    try:
        await asyncio.to_thread(here.run_access.note_place, run.number, planning.place_of_plan(plan))
    except StoreError:
        run.halt("it could not be kept whose run this is")
        raise
    return {"run": run.number, "name": plan.experiment.name, "plan": plan.digest, "seed": plan.seed}


async def _once(
    request: Request, here: Services, user: str, key: str, start: Callable[[], Awaitable[Answer]]
) -> Answer:
    digest = hashlib.sha256(request.url.path.encode() + b"\n" + await request.body()).hexdigest()
    try:
        answered = await asyncio.to_thread(here.requests.begin, user, key, digest)
    except KeyReused as error:
        raise Problem(409, "key-reused", "this Idempotency-Key cannot be used", str(error)) from error
    if answered is not None:
        return answered
    try:
        answer = await start()
    except Problem:
        await asyncio.to_thread(here.requests.forget, user, key)
        raise
    await asyncio.to_thread(here.requests.finish, user, key, answer)
    return answer


def _demand(number: int, here: Services, caller: Caller) -> RunLine:
    line = here.run_access.line(number)
    if line is None:
        caller.missing(f"run {number}")
    caller.demand(here.run_access.places_of([number])[number], f"run {number}", Permission.RUN_READ)
    return line


def _halt_elsewhere(number: int, here: Services, caller: Caller, why: str) -> None:
    """Another controller carries the run, and looks for this every half a second."""
    line = _demand(number, here, caller)
    if line.verdict is not None:
        why = f"it ended as {line.verdict}"
        raise Problem(409, "over", f"run {number} is over", why, f"brownout runs show {number}")
    here.levers.pull(why, caller.actor, number)


def _line(here: Services, line: RunLine) -> dict[str, Any]:
    run = here.runs.active.get(line.number)
    return {
        "run": line.number,
        "name": line.name,
        "operator": line.operator,
        "started_ns": line.started_ns,
        "ended_ns": line.ended_ns,
        "verdict": line.verdict,
        "exit_code": line.exit_code,
        "headline": line.headline,
        "phase": None if run is None else run.engine.machine.phase.value,
    }
