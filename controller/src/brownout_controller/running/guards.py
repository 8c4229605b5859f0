"""Guards: what aborts a run. Judged several times a second over everything seen so far."""

from brownout_controller.analysis.probe_metrics import ProbeEvidence, measure_probe
from brownout_controller.language.experiment import AgentLostGuard, Guard, MaxDurationGuard, ProbeGuard
from brownout_controller.record import RunRecord, Verdict

NS_PER_MS = 1_000_000


class Guards:
    """All guards of one run; `hit` is asked with the run's state and remembers since when each condition is true."""

    def __init__(self, guards: tuple[Guard, ...], started_ns: int) -> None:
        self._guards = guards
        self._started_ns = started_ns
        self._true_since: dict[int, int] = {}

    @property
    def reads_record(self) -> bool:
        """Whether any guard needs the samples."""
        return any(isinstance(guard, ProbeGuard) for guard in self._guards)

    def hit(self, now_ns: int, record: RunRecord | None, silent_since_ns: dict[str, int]) -> str:
        """Why the run must end now, or "". `silent_since_ns` names hosts with a fault whose agent is silent."""
        for position, guard in enumerate(self._guards):
            reason = self._judge(guard, now_ns, record, silent_since_ns)
            if not reason:
                self._true_since.pop(position, None)
                continue
            since_ns = self._true_since.setdefault(position, now_ns)
            patience_ms = guard.for_ms if isinstance(guard, ProbeGuard) else 0.0
            if now_ns - since_ns >= patience_ms * NS_PER_MS:
                return reason
        return ""

    def _judge(self, guard: Guard, now_ns: int, record: RunRecord | None, silent_since_ns: dict[str, int]) -> str:
        match guard:
            case MaxDurationGuard(max_duration_ms=limit_ms):
                too_long = now_ns - self._started_ns >= limit_ms * NS_PER_MS
                return f"the run took longer than {limit_ms / 1_000:g} s" if too_long else ""
            case AgentLostGuard(agent_lost_ms=limit_ms):
                lost = [host for host, since in silent_since_ns.items() if now_ns - since >= limit_ms * NS_PER_MS]
                return f"the agent of {', '.join(lost)} was silent for {limit_ms / 1_000:g} s" if lost else ""
            case ProbeGuard():
                return _probe_hit(guard, record) if record is not None else ""


def _probe_hit(guard: ProbeGuard, record: RunRecord) -> str:
    condition = guard.abort_if
    for series in record.series:
        if series.probe != guard.probe:
            continue
        measured = measure_probe(condition.metric, ProbeEvidence(record, series, ()))
        if measured.interval and measured.interval.judge(condition.operator, condition.limit) is Verdict.HELD:
            return f"{guard.probe} from {series.vantage.name}: {condition.text}: {measured.evidence}"
    return ""
