"""The TCP probe: can a connection be opened. It says that the kernel there accepts, not that the service works."""

from dataclasses import dataclass
from typing import ClassVar

from brownout_agent.dialing import Answer, ask_within, check_timeout, dial, parse_address
from brownout_agent.observe import Sample


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Opens one connection and closes it. Outcome of a success: `connected`; otherwise a word of `outcome_of`."""

    kind: ClassVar[str] = "tcp"
    summary: ClassVar[str] = "Opens a TCP connection and closes it."

    address: str
    """`host:port`; an IPv6 address in brackets."""
    timeout_ms: float = 2_000
    """For name resolution and connecting together, in milliseconds."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that can never work."""
        parse_address(self.address)
        check_timeout(self.timeout_ms)

    async def ask(self) -> Sample:
        """Connect once. Raises NotAskedError when the prober itself could not ask."""
        return await ask_within(self.timeout_ms, self._connect())

    async def _connect(self) -> Answer:
        (await dial(parse_address(self.address))).close()
        return Answer(ok=True, outcome="connected")
