"""The residue audit as rows of short texts, one a host."""

from dataclasses import dataclass

from brownout_controller.record import HostResidue, ResidueState, RunRecord

MOST_RESIDUE_LINES = 20


@dataclass(frozen=True, slots=True)
class ResidueRow:
    """The residue audit of one host. Of many lines the first are told; the JSON holds all."""

    host: str
    state: str
    is_clean: bool
    left: tuple[str, ...]
    changed_meanwhile: tuple[str, ...]
    unread: tuple[str, ...]


def residue_rows(record: RunRecord) -> tuple[ResidueRow, ...]:
    """A row for every host that was audited."""
    return tuple(_residue_row(found) for found in record.residue)


def _residue_row(found: HostResidue) -> ResidueRow:
    return ResidueRow(
        host=found.host,
        state=found.state.value,
        is_clean=found.state is ResidueState.CLEAN,
        left=_first(found.left),
        changed_meanwhile=_first(found.changed_meanwhile),
        unread=_first(found.unread),
    )


def _first(lines: tuple[str, ...]) -> tuple[str, ...]:
    more = len(lines) - MOST_RESIDUE_LINES
    return (*lines[:MOST_RESIDUE_LINES], f"and {more} more") if more > 0 else lines
