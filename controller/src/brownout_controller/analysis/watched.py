"""What watchers saw: a system's own view of its health, as changes and as stretches of one state."""

from dataclasses import dataclass

from brownout_controller.record import EventKind, RunRecord

_HEALTHY = frozenset({"up", "open", "ok", "healthy", "passing", "running", "streaming", "online", "leader", "master"})
_UNKNOWN = frozenset({"", "unreadable", "unknown"})


@dataclass(frozen=True, slots=True)
class StateChange:
    """A subject's state went from `before` to `after` within [at_ns - before_ns - error_ns, at_ns + error_ns]."""

    watcher: str
    host: str
    """Where the watcher ran; whose clock stamped it."""
    subject: str
    before: str
    after: str
    at_ns: int
    before_ns: int
    error_ns: int

    @property
    def is_first_look(self) -> bool:
        """The watcher's first look at this subject: nothing changed."""
        return self.before == ""

    @property
    def is_worse(self) -> bool:
        """From a state known to be healthy to one known not to be."""
        return is_healthy(self.before) is True and is_healthy(self.after) is False

    @property
    def is_better(self) -> bool:
        """The other way round."""
        return is_healthy(self.before) is False and is_healthy(self.after) is True


@dataclass(frozen=True, slots=True)
class StateStretch:
    """A subject was seen in one state from `begun_ns` to `ended_ns`."""

    state: str
    begun_ns: int
    ended_ns: int


def is_healthy(state: str) -> bool | None:
    """Whether a system that says `state` of a part calls it fit for traffic; None where the state is not known."""
    word = state.strip().partition(" ")[0].lower()
    return None if word in _UNKNOWN else word in _HEALTHY


def state_changes(record: RunRecord) -> tuple[StateChange, ...]:
    """Every change that any watcher saw, first looks included, in order of time."""
    changes = (
        StateChange(
            watcher=str(event.detail.get("watcher", event.subject.partition(":")[0])),
            host=event.host,
            subject=str(event.detail.get("subject", event.subject.partition(":")[2] or event.subject)),
            before=str(event.detail.get("before", "")),
            after=str(event.detail.get("after", "")),
            at_ns=event.at_ns,
            before_ns=event.before_ns,
            error_ns=event.error_ns,
        )
        for event in record.events
        if event.kind is EventKind.WATCH_CHANGED
    )
    return tuple(sorted(changes, key=lambda change: change.at_ns))


def watcher_failures(record: RunRecord, watcher: str) -> tuple[int, ...]:
    """When this watcher could not read its system (ns)."""
    return tuple(
        event.at_ns
        for event in record.events
        if event.kind is EventKind.WATCH_FAILED and watcher in {event.subject, event.detail.get("watcher")}
    )


def state_stretches(changes: tuple[StateChange, ...], end_ns: int) -> dict[tuple[str, str], tuple[StateStretch, ...]]:
    """What each (watcher, subject) was in and when, up to `end_ns`. Of several watching hosts, the first."""
    hosts: dict[tuple[str, str], str] = {}
    by_subject: dict[tuple[str, str], list[StateChange]] = {}
    for change in changes:
        key = (change.watcher, change.subject)
        if hosts.setdefault(key, change.host) == change.host:
            by_subject.setdefault(key, []).append(change)
    return {
        key: tuple(
            StateStretch(change.after, change.at_ns, following.at_ns if following else max(end_ns, change.at_ns))
            for change, following in zip(own, [*own[1:], None], strict=True)
        )
        for key, own in by_subject.items()
    }
