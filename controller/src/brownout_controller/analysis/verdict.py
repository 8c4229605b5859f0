"""The verdict over a run: what was found, in one value that every report is made from.

What did not happen is never a pass. A fault that was refused or not proved turns `held` into `inconclusive`; where an
expectation was missed all the same, users were hurt, and `deviated` stands. An undo that is not confirmed leaves the
verdict as it is and takes the exit code and the headline.
"""

import math
from dataclasses import dataclass

from brownout_controller.analysis.anatomy import Anatomy, find_anatomies
from brownout_controller.analysis.coverage import observed_span
from brownout_controller.analysis.expectations import ExpectationResult, judge_expectations
from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.outages import Outage, find_outages
from brownout_controller.analysis.periods import faults_during
from brownout_controller.analysis.wording import counted, estimate
from brownout_controller.exit_codes import EXIT_CODE_OF_VERDICT, ExitCode
from brownout_controller.record import FaultOutcome, HostResidue, ResidueState, RunRecord, Verdict

_STOPPED = {"guard": Verdict.ABORTED, "person": Verdict.HALTED, "error": Verdict.ERRORED}
_UNDO_CONFIRMED = frozenset({"clean", "not_needed"})
_LINES_TOLD = 10
"""Of a host's residue: the rest stands in the audit itself."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was concluded from a run's record."""

    verdict: Verdict
    exit_code: ExitCode
    headline: str
    """One sentence, without the verdict's own word."""
    reasons: tuple[str, ...]
    """Why, beyond what the headline says: facts, each one sentence, most telling first."""
    expectations: tuple[ExpectationResult, ...]
    anatomies: tuple[Anatomy, ...]
    outages: tuple[Outage, ...]
    effects_summary: str
    undo_summary: str
    """`2 of 2 faults undone and verified; residue audit: clean on app-1`, or what is left and where."""


def judge(record: RunRecord) -> Findings:
    """Judge a run from its record alone."""
    anatomies = find_anatomies(record)
    expectations = judge_expectations(record, anatomies)
    outages = tuple(outage for series in record.series for outage in find_outages(series, observed_span(record)))
    verdict = _verdict(record, expectations)
    unconfirmed = find_unconfirmed(record)
    doubts = _doubts(record)
    headline = _headline(record, verdict, expectations, outages, doubts)
    reasons = _reasons(record, unconfirmed, doubts, anatomies)
    return Findings(
        verdict=verdict,
        exit_code=ExitCode.UNDO_NOT_CONFIRMED if unconfirmed else EXIT_CODE_OF_VERDICT[verdict],
        headline=unconfirmed.headline + headline if unconfirmed else headline,
        reasons=tuple(reason for reason in reasons if reason not in headline),
        expectations=expectations,
        anatomies=anatomies,
        outages=outages,
        effects_summary=_effects_summary(record),
        undo_summary=_undo_summary(record, unconfirmed),
    )


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """What is not known to be undone: by the word of the faults' hosts, and by the residue audit."""

    faults: tuple[FaultOutcome, ...]
    hosts: tuple[HostResidue, ...]

    def __bool__(self) -> bool:
        return bool(self.faults or self.hosts)

    @property
    def host_names(self) -> tuple[str, ...]:
        """Where to look, each once."""
        return tuple(dict.fromkeys([fault.host for fault in self.faults] + [found.host for found in self.hosts]))

    @property
    def headline(self) -> str:
        """What it is about, and what to type."""
        told = [f"{fault.name} on {fault.host}" for fault in self.faults]
        hosts_told = {fault.host for fault in self.faults}
        told += [_audit_told(found) for found in self.hosts if found.host not in hosts_told]
        host = self.host_names[0]
        next_step = f"on {host} type `brownout-injector reap`, then `brownout doctor {host}`"
        return f"UNDO NOT CONFIRMED for {', '.join(told)}: {next_step}. "


def find_unconfirmed(record: RunRecord) -> Unconfirmed:
    """Every fault and every host whose undo nothing confirms."""
    return Unconfirmed(
        tuple(fault for fault in record.faults if fault.undo not in _UNDO_CONFIRMED),
        tuple(found for found in record.residue if found.state is not ResidueState.CLEAN),
    )


def _audit_told(found: HostResidue) -> str:
    if found.state is ResidueState.RESIDUE:
        return f"{found.host} (residue audit: {counted(len(found.left), 'difference')})"
    return f"{found.host} (residue audit: unknown)"


def worst_anatomies(anatomies: tuple[Anatomy, ...]) -> tuple[Anatomy, ...]:
    """For each fault the one vantage that saw it worst: longest recovery, then longest failover."""
    by_fault: dict[str, list[Anatomy]] = {}
    for anatomy in anatomies:
        by_fault.setdefault(anatomy.fault, []).append(anatomy)
    return tuple(max(group, key=_severity) for group in by_fault.values())


def _severity(anatomy: Anatomy) -> tuple[float, float]:
    spans = (anatomy.duration("recovery").ms, anatomy.duration("time_to_failover").ms)
    recovery, failover = (-1.0 if span is None else span.high for span in spans)
    return recovery, failover


def _verdict(record: RunRecord, expectations: tuple[ExpectationResult, ...]) -> Verdict:
    if record.stopped_by:
        return _STOPPED.get(record.stopped_by, Verdict.ERRORED)
    verdicts = {result.verdict for result in expectations}
    if Verdict.DEVIATED in verdicts:
        return Verdict.DEVIATED
    if Verdict.INCONCLUSIVE in verdicts or _doubts(record):
        return Verdict.INCONCLUSIVE
    return Verdict.HELD


def _doubts(record: RunRecord) -> tuple[str, ...]:
    """Why nothing may be concluded from the run, whatever the probes say."""
    if not record.faults:
        return ("no fault was injected, so nothing was put to the test",)
    doubts = [_doubt(fault) for fault in record.faults if not fault.proved]
    if record.series and not any(series.sent_ns for series in record.series):
        doubts.append("no probe took a single sample")
    return tuple(doubts)


def _doubt(fault: FaultOutcome) -> str:
    why = fault.explanation or "the host gave no reason"
    if fault.active_ns is None:
        return f"{fault.name} was not injected on {fault.host}: {why}"
    return f"{fault.name} was not proved on {fault.host}: {why}"


def _headline(
    record: RunRecord,
    verdict: Verdict,
    expectations: tuple[ExpectationResult, ...],
    outages: tuple[Outage, ...],
    doubts: tuple[str, ...],
) -> str:
    if verdict in {Verdict.ABORTED, Verdict.HALTED, Verdict.ERRORED}:
        who = {Verdict.ABORTED: "a guard", Verdict.HALTED: "a person", Verdict.ERRORED: "an error"}[verdict]
        return f"stopped by {who}: {record.stop_reason or 'no reason was given'}"
    missed = [result for result in expectations if result.verdict is verdict]
    if verdict is Verdict.DEVIATED:
        return f"{missed[0].name} missed `{missed[0].text}`: {missed[0].evidence}"
    if verdict is Verdict.INCONCLUSIVE:
        return doubts[0] if doubts else f"{missed[0].name} `{missed[0].text}` cannot be told: {missed[0].evidence}"
    held = f"all {len(expectations)} expectations held" if len(expectations) > 1 else "the expectation held"
    return f"{held if expectations else 'nothing was expected'}; {_impact(record, outages)}"


def _impact(record: RunRecord, outages: tuple[Outage, ...]) -> str:
    if not record.series:
        return "no probe was running"
    if not outages:
        return "no request of any probe failed"
    worst = max(outages, key=lambda outage: (outage.open, outage.duration_ms.value))
    during = faults_during(record, worst.begun_ns, worst.ended_ns)
    cause = f", during {', '.join(during)}" if during else ""
    return f"{worst.probe} failed for {estimate(worst.duration_ms, 'ms')} at worst{cause}"


def _reasons(
    record: RunRecord, unconfirmed: Unconfirmed, doubts: tuple[str, ...], anatomies: tuple[Anatomy, ...]
) -> tuple[str, ...]:
    left = [
        f"{fault.name} on {fault.host}: undo is {fault.undo}" + "".join(f"; left: {line}" for line in fault.residue)
        for fault in unconfirmed.faults
    ]
    for found in unconfirmed.hosts:
        lines = [*found.left, *(f"not known: {line}" for line in found.unread)]
        left += [f"residue audit of {found.host}: {line}" for line in lines[:_LINES_TOLD]]
        if len(lines) > _LINES_TOLD:
            left.append(f"residue audit of {found.host}: {len(lines) - _LINES_TOLD} more lines in the JSON document")
    stopped = [record.stop_reason] if record.stopped_by and record.stop_reason else []
    return (*left, *stopped, *doubts, *(_story(anatomy) for anatomy in worst_anatomies(anatomies)))


def _story(anatomy: Anatomy) -> str:
    """What happened during one fault, in one sentence."""
    recovery = anatomy.duration("recovery")
    parts = (
        _told(anatomy.duration("time_to_detect").ms, "noticed after", "not noticed"),
        _told(anatomy.duration("time_to_failover").ms, "traffic moved after", "no move of traffic seen"),
        _told(recovery.ms, "steady again after", "not steady again" if recovery.ms else recovery.reason),
    )
    seen_by = f" ({anatomy.probe} from {anatomy.vantage})" if anatomy.probe else ""
    return f"{anatomy.fault}: {', '.join(parts)}{seen_by}"


def _told(interval: Interval | None, seen: str, unseen: str) -> str:
    if interval is None or math.isinf(interval.high):
        return unseen
    return f"{seen} {estimate(interval, 'ms')}"


def _effects_summary(record: RunRecord) -> str:
    proved = sum(fault.proved for fault in record.faults)
    return f"{proved} of {counted(len(record.faults), 'fault')} proved"


def _undo_summary(record: RunRecord, unconfirmed: Unconfirmed) -> str:
    touched = [fault for fault in record.faults if fault.undo != "not_needed"]
    if unconfirmed:
        faults = f"{len(touched) - len(unconfirmed.faults)} of {counted(len(touched), 'fault')} confirmed"
        return f"{faults}; NOT CONFIRMED on {', '.join(sorted(unconfirmed.host_names))}"
    if not touched:
        return "nothing to undo"
    audited = f"; residue audit: clean on {', '.join(found.host for found in record.residue)}" if record.residue else ""
    return f"{len(touched)} of {counted(len(touched), 'fault')} undone and verified{audited}"
