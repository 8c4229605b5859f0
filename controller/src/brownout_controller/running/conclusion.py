"""What a run came to: judged, and kept with everything that will ever be drawn of it."""

from dataclasses import dataclass

from brownout_controller.analysis.verdict import Findings, judge
from brownout_controller.exit_codes import ExitCode
from brownout_controller.record import RunRecord
from brownout_controller.reporting.document import to_document
from brownout_controller.running.engine import Outcome
from brownout_controller.running.keeping import RunKeeper

REFUSED = "refused"
"""Stands in the place of a verdict where nothing was injected."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The end of a run. `refused` says why nothing was injected; `trouble` why its record is not kept."""

    record: RunRecord
    findings: Findings
    verdict: str
    exit_code: ExitCode
    headline: str
    refused: tuple[str, ...] = ()
    trouble: str = ""


def conclude(outcome: Outcome, keeper: RunKeeper) -> Conclusion:
    """Judge a run and close it in the store. Takes its time: not for the event loop."""
    record = outcome.record
    findings = judge(record)
    refused = () if record.stopped_by else outcome.refused
    verdict, code, headline = findings.verdict.value, findings.exit_code, findings.headline
    if refused:
        verdict, code, headline = REFUSED, ExitCode.REFUSED, f"not steady before the first fault: {refused[0]}"
    keeper.finish(to_document(record, findings), verdict, int(code), headline)
    return Conclusion(record, findings, verdict, code, headline, refused, keeper.trouble)
