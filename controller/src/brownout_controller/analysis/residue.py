"""The residue audit: what is on a host after a run's last undo against what was there before its first fault. Pure.

A difference is **residue** when a fault of this run could have made it: it is in a section that one of the run's faults
touches, or what appeared bears a name of ours. Everything else has **changed meanwhile**: hosts live on during a run,
and so do faults of other runs that are in effect there at the same time.
A section that could not be read is never clean: the host is **unknown** then, unless the section could not be read
before either and no fault of the run touches it.

Free space and the clock move by themselves. A file system may lose SPACE_SHARE of its size, at least SPACE_BYTES; the
wall clock may move CLOCK_STEP_S against the boot clock, and CLOCK_SLEW of the time in between, as adjtimex(2) slews it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from brownout_agent.faults.network_rules import table_name
from brownout_agent.fingerprint import LIVE_HOLDER, Fingerprint, Section, is_cut, is_reserved
from brownout_agent.quantities import format_size

from brownout_controller.record import HostResidue, ResidueState

SPACE_SHARE = 0.01
SPACE_BYTES = 16 * 2**20
CLOCK_STEP_S = 0.5
CLOCK_SLEW = 500e-6

_OURS = frozenset({Section.CGROUPS, Section.HOLDERS, Section.UNNAMED_FILES})
"""All that stands in these is ours."""
_TOUCHED = {
    "cpu": _OURS,
    "memory": _OURS,
    "disk": _OURS | {Section.SPACE},
    "network": _OURS | {Section.NFT, Section.QDISCS},
    "process": _OURS | {Section.STOPPED},
}
_NAMED = _OURS | {Section.NFT, Section.INTERFACES}
"""Where our names are reserved; elsewhere they may stand in anybody's path."""
_ONLY_WHAT_APPEARED = _OURS | {Section.STOPPED}
"""A process that stood still and does so no more was not left behind; nor was what was ours and is gone."""


_BY_AMOUNT = frozenset({Section.SPACE, Section.QDISCS})
"""What does not bear the name of the fault that changes it."""


@dataclass(frozen=True, slots=True)
class _Difference:
    appeared: tuple[str, ...]
    vanished: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Others:
    """Faults of other runs that were in effect at one of the looks: what they do there is theirs to undo."""

    own: frozenset[str]
    names: frozenset[str]
    sections: frozenset[Section]

    @classmethod
    def of(cls, faults: Mapping[str, str], *looks: Fingerprint) -> "_Others":
        lines = (line for look in looks for line in look.sections.get(Section.HOLDERS, ()))
        held = (found for line in lines if (found := LIVE_HOLDER.fullmatch(line)))
        kinds = {one["fault_id"]: one["kind"] for one in held if one["fault_id"] not in faults}
        moved = touched_sections(kinds.values()) & _BY_AMOUNT
        return cls(frozenset(faults), frozenset(kinds) | frozenset(map(table_name, kinds)), moved)

    def explain(self, section: Section, line: str) -> bool:
        """Whether a line is theirs. A control group names its fault; hosts that share a kernel see each other's."""
        if section is Section.CGROUPS:
            return not any(fault_id in line for fault_id in self.own)
        return section in self.sections or any(name in line for name in self.names)


def touched_sections(kinds: Collection[str]) -> frozenset[Section]:
    """The sections that faults of these kinds may change; a family that is not known here may change all of them."""
    families = {kind.partition(".")[0] for kind in kinds}
    return frozenset[Section]().union(*(_TOUCHED.get(family, frozenset(Section)) for family in families))


def find_residue(host: str, faults: Mapping[str, str], before: Fingerprint, after: Fingerprint) -> HostResidue:
    """Compare two looks at one host.

    Args:
        host: its name.
        faults: the kinds of the faults that this run had there, by fault id.
        before: the look before the first of them.
        after: the look after the last undo.
    """
    if before.boot_id != after.boot_id and before.sections and after.sections:
        return unknown(host, "it was booted meanwhile, so that what was there before is no measure")
    touched = touched_sections(faults.values())
    others = _Others.of(faults, before, after)
    left: list[str] = []
    changed: list[str] = []
    unread: list[str] = []
    is_unknown = False
    for section in Section:
        why = after.unread.get(section) or before.unread.get(section)
        if why:
            when = "" if section in after.unread else "before the first fault: "
            unread.append(f"{section.value}: {when}{why}")
            is_unknown |= section in touched or section not in before.unread
            continue
        try:
            found = _compare(section, before, after)
        except ValueError:
            unread.append(f"{section.value}: what the host said of it makes no sense")
            is_unknown = True
            continue
        residue, elses = _attribute(section, section in touched, found, others)
        left += residue
        changed += elses
    unread += [f"{what}: {why}" for what, why in sorted(after.unread.items()) if what not in set(Section)]
    state = ResidueState.RESIDUE if left else ResidueState.UNKNOWN if is_unknown else ResidueState.CLEAN
    return HostResidue(host, state, tuple(left), tuple(changed), tuple(unread))


def unknown(host: str, why: str) -> HostResidue:
    """A host that could not be looked at."""
    return HostResidue(host, ResidueState.UNKNOWN, (), (), (why,))


def _attribute(section: Section, is_touched: bool, found: _Difference, others: _Others) -> tuple[list[str], list[str]]:
    """What is residue and what has changed meanwhile, as lines that begin with `+` or `-` and name the section."""
    left: list[str] = []
    changed: list[str] = []
    for line in found.appeared:
        is_ours = section in _NAMED and is_reserved(line)
        is_left = (is_touched or is_ours) and not others.explain(section, line)
        (left if is_left else changed).append(f"+ {section.value}: {line}")
    for line in found.vanished:
        is_ours = section in _NAMED and is_reserved(line)
        is_loss = is_touched and section not in _ONLY_WHAT_APPEARED and not is_ours
        is_loss = is_loss and not others.explain(section, line)
        (left if is_loss else changed).append(f"- {section.value}: {line}")
    return left, changed


def _compare(section: Section, before: Fingerprint, after: Fingerprint) -> _Difference:
    compare = _BY_NUMBER.get(section)
    if compare is not None:
        return compare(before, after)
    was, now = Counter(before.sections[section]), Counter(after.sections[section])
    if is_cut(was) or is_cut(now):
        # Of sections that were cut only our names and the digest of the rest are always there.
        was, now = _always_kept(was), _always_kept(now)
    return _Difference(tuple(sorted((now - was).elements())), tuple(sorted((was - now).elements())))


def _always_kept(lines: Counter[str]) -> Counter[str]:
    return Counter({line: count for line, count in lines.items() if is_reserved(line) or is_cut([line])})


def _compare_space(before: Fingerprint, after: Fingerprint) -> _Difference:
    """Of file systems that both looks have seen, those that have lost more than may be."""
    was, now = _space(before), _space(after)
    appeared, vanished = [], []
    for folder in was.keys() & now.keys():
        (free_before, total), (free_after, _) = was[folder], now[folder]
        tolerance = max(SPACE_SHARE * total, SPACE_BYTES)
        if free_before - free_after > tolerance:
            lost, allowed = format_size(free_before - free_after), format_size(tolerance)
            vanished.append(f"{folder} had {format_size(free_before)} free")
            appeared.append(f"{folder} has {format_size(free_after)} free, {lost} less ({allowed} may be lost)")
    return _Difference(tuple(sorted(appeared)), tuple(sorted(vanished)))


def _space(fingerprint: Fingerprint) -> dict[str, tuple[int, int]]:
    rows = (line.split(" ", 2) for line in fingerprint.sections[Section.SPACE])
    return {folder: (int(free), int(total)) for free, total, folder in rows}


def _compare_clock(before: Fingerprint, after: Fingerprint) -> _Difference:
    (was,), (now,) = before.sections[Section.CLOCK], after.sections[Section.CLOCK]
    step_s = (int(now) - int(was)) / 1e9
    passed_s = (after.at_boottime_ns - before.at_boottime_ns) / 1e9
    if abs(step_s) <= CLOCK_STEP_S + CLOCK_SLEW * max(passed_s, 0.0):
        return _Difference((), ())
    return _Difference((f"the wall clock was moved by {step_s:+.3f} s against the boot clock",), ())


_BY_NUMBER: dict[Section, Callable[[Fingerprint, Fingerprint], _Difference]] = {
    Section.SPACE: _compare_space,
    Section.CLOCK: _compare_clock,
}
