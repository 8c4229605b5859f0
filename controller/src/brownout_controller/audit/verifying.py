"""Whether an audit log is what was written: its chain, its checkpoints, and those that were exported."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from brownout_agent.chain import GENESIS, Break, Following, Link

from brownout_controller.audit.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found. `sealed` is the last record that a genuine checkpoint of a known key covers, 0 for none."""

    first: int
    records: int
    sealed: int
    breaks: tuple[Break, ...]

    @property
    def sound(self) -> bool:
        """Nothing was changed, as far as can be told."""
        return not self.breaks


def verify(
    links: Iterable[Link],
    checkpoints: Iterable[Checkpoint],
    keys: Collection[str],
    end: tuple[int, str] | None = None,
) -> Verified:
    """Go along the whole chain, and hold it against checkpoints by `keys` and the `end` that was noted, if any.

    A chain that does not begin with record 1 is one whose beginning was rotated away: it is believed from there on.
    """
    following: Following | None = None
    first = 0
    asked = sorted(checkpoints, key=lambda one: one.sequence)
    at = {one.sequence: "" for one in asked}
    for one in links:
        if following is None:
            first = one.sequence
            begun_later = first > 1 and one.previous != GENESIS
            following = Following(first - 1, one.previous) if begun_later else Following()
        following.take(one)
        if one.sequence in at:
            at[one.sequence] = one.hash
    following = following or Following()
    breaks = list(following.breaks)
    sealed = 0
    for checkpoint in asked:
        if why := _against(checkpoint, at[checkpoint.sequence], keys, first, following.sequence):
            breaks.append(Break(checkpoint.sequence, why))
        else:
            sealed = checkpoint.sequence
    if end is not None and end != (following.sequence, following.hash):
        breaks.append(Break(following.sequence, f"the chain ends here, and was noted to end at record {end[0]}"))
    return Verified(first, following.sequence - max(first - 1, 0), sealed, tuple(breaks))


def _against(checkpoint: Checkpoint, hash_: str, keys: Collection[str], first: int, last: int) -> str:
    """Why a checkpoint speaks against the chain; "" when it speaks for it."""
    if not checkpoint.is_genuine():
        return "its checkpoint is not genuine: the signature does not fit"
    if checkpoint.public_key not in keys:
        return f"its checkpoint is signed by a key that is not known here, {checkpoint.public_key}"
    if checkpoint.sequence > last:
        return f"a checkpoint is signed for it, and the log ends at record {last}: it was cut off"
    if first and checkpoint.sequence < first:
        return "a checkpoint is signed for it, and the log begins later"
    return "" if hash_ == checkpoint.hash else "it is not the record that its checkpoint was signed for"
