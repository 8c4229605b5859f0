"""Changing the authority in phases, as Teleport does it, so that no agent is lost and every step can be taken back.

    standby -> init -> update_clients -> update_servers -> standby
              +---------------+---------------+----> rollback -> standby

Between standbys there are two generations of the authority. Agents trust both from `init` on; they get certificates of
the next one in `update_clients`; controllers show theirs in `update_servers`; then the old one is forgotten.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a rotation stands."""

    STANDBY = "standby"
    INIT = "init"
    UPDATE_CLIENTS = "update_clients"
    UPDATE_SERVERS = "update_servers"
    ROLLBACK = "rollback"


FOLLOWING = {
    Phase.STANDBY: Phase.INIT,
    Phase.INIT: Phase.UPDATE_CLIENTS,
    Phase.UPDATE_CLIENTS: Phase.UPDATE_SERVERS,
    Phase.UPDATE_SERVERS: Phase.STANDBY,
    Phase.ROLLBACK: Phase.STANDBY,
}


class RotationRefused(Exception):
    """This step cannot be taken now; the text says why and what can."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The phase and the generations in it: `old` alone in standby, else `old` and `new`."""

    phase: Phase
    old: int
    new: int | None
    began_ns: int
    """When this phase began, since the Unix epoch."""

    @property
    def trusted(self) -> tuple[int, ...]:
        """The generations that are believed."""
        return (self.old,) if self.new is None else (self.old, self.new)

    @property
    def issuing(self) -> int:
        """The generation that signs agents' certificates."""
        forward = self.phase in {Phase.UPDATE_CLIENTS, Phase.UPDATE_SERVERS}
        return self.new if forward and self.new is not None else self.old

    @property
    def presenting(self) -> int:
        """The generation whose certificate controllers show."""
        return self.new if self.phase is Phase.UPDATE_SERVERS and self.new is not None else self.old

    def advanced(self, now_ns: int) -> "Rotation":
        """One phase further. What is not trusted any more afterwards is lost to whoever still rests on it."""
        following = FOLLOWING[self.phase]
        if following is Phase.INIT:
            return Rotation(following, self.old, self.old + 1, now_ns)
        if following is Phase.STANDBY:
            return Rotation(following, self.issuing, None, now_ns)
        return Rotation(following, self.old, self.new, now_ns)

    def rolled_back(self, now_ns: int) -> "Rotation":
        """Issue and show the old generation again; both stay trusted until the next step.

        Raises:
            RotationRefused: nothing is being rotated, or it is being rolled back already.
        """
        if self.phase in {Phase.STANDBY, Phase.ROLLBACK}:
            raise RotationRefused(f"there is nothing to roll back in phase {self.phase}; next: brownout ca status")
        return Rotation(Phase.ROLLBACK, self.old, self.new, now_ns)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one agent: when it was last here, what it trusts, who signed its certificate, until when."""

    agent_id: str
    host: str
    seen_ns: int | None
    trusts: str
    generation: int | None
    expires_ns: int


def laggards(rotation: Rotation, bundle: str, agents: Iterable[Standing], now_ns: int) -> list[tuple[Standing, str]]:
    """Agents that have not come along with this phase, and what each lacks.

    One whose certificate has run out must join again whatever is done here, and holds nobody up.

    Args:
        rotation: the phase that is to be left.
        bundle: SHA-256 of the authorities that agents shall trust in it.
        agents: every agent that is neither revoked nor locked.
        now_ns: since the Unix epoch.
    """
    if rotation.phase is Phase.STANDBY:
        return []
    found = ((agent, _lacks(rotation, bundle, agent)) for agent in agents if agent.expires_ns > now_ns)
    return [(agent, lack) for agent, lack in found if lack]


def _lacks(rotation: Rotation, bundle: str, agent: Standing) -> str:
    if agent.seen_ns is None or agent.seen_ns < rotation.began_ns:
        return f"was not here in phase {rotation.phase}"
    if agent.trusts != bundle:
        return "does not trust both authorities yet"
    if agent.generation != rotation.issuing:
        return f"its certificate is of generation {agent.generation}, not {rotation.issuing}"
    return ""
