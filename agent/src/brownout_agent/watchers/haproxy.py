"""The HAProxy watcher: what the load balancer itself believes of its servers, from its runtime socket.

It polls `show stat` (HAProxy management guide, 9.1 for the columns and 9.3 for the commands) with a connection for each
look: a connection that is kept would stay with the *old* process after a reload and show a health that serves nobody.
"""

import asyncio
import csv
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from brownout_agent.dialing import check_timeout, dial, parse_address
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.observe import Change
from brownout_agent.pacing import Pace

UNREADABLE = "unreadable"
"""The backend's state while its HAProxy gives no answer: silence is never read as health."""
GONE = "gone"
"""The state of a server that the backend does not list any more."""
LARGEST_ANSWER = 4 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")  # what HAProxy allows; also keeps `;` and line ends out of the command
_BACKENDS_AND_SERVERS = 2 + 4


@dataclass(frozen=True, slots=True)
class HaproxyWatcher:
    """Follows one backend. Subjects: `backend` itself, and `backend/server` for each of its servers.

    States are HAProxy's own words without their counters: UP, DOWN, NOLB, DRAIN, MAINT, `no check`; and ours, `gone`
    and `unreadable`. `UP 1/3` (failing, but not yet down) is UP with the whole text in `detail`.
    """

    kind: ClassVar[str] = "haproxy"
    summary: ClassVar[str] = "Reads the health of a backend's servers from HAProxy's runtime socket."

    socket: str
    """The runtime socket: a path such as /run/haproxy/admin.sock, or `host:port`."""
    backend: str
    timeout_ms: float = 1_000
    """For one look, in milliseconds."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that can never work."""
        check_timeout(self.timeout_ms)
        if not self.socket.startswith("/"):
            parse_address(self.socket, "socket")
        if not _NAME.fullmatch(self.backend):
            raise ValueError(f"backend `{self.backend}` is not a name that HAProxy allows: letters, digits and _.:-")

    async def changes(self, every_s: float = 0.1) -> AsyncGenerator[Change, None]:
        """Yield every change until cancelled, looking every `every_s` seconds.

        Raises:
            OSError: the socket cannot be read at the first look (later, that is a change to `unreadable`).
            ValueError: at the first look, it is not HAProxy or has no such backend.
        """
        view = View()
        pace = Pace(every_s)
        while True:
            await pace.next_due()
            asked_ns = boottime_ns()
            try:
                states = await self._look()
            except (OSError, ValueError) as error:
                if not view.states:
                    raise
                changes = view.lose(self.backend, str(error), asked_ns, boottime_ns())
            else:
                changes = view.update(states, asked_ns, boottime_ns())
            for change in changes:
                yield change

    async def _look(self) -> dict[str, "State"]:
        try:
            async with asyncio.timeout(self.timeout_ms / 1_000):
                answer = await self._ask(f"show stat {self.backend} {_BACKENDS_AND_SERVERS} -1")
                if "No such proxy" not in answer:
                    return parse_states(answer)
                known = sorted(parse_states(await self._ask("show stat -1 2 -1")))
        except TimeoutError as error:
            raise TimeoutError(f"{self.socket}: no answer within {self.timeout_ms:g} ms") from error
        raise ValueError(f"HAProxy has no backend `{self.backend}`; it has {', '.join(known) or 'none'}")

    async def _ask(self, command: str) -> str:
        if self.socket.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(self.socket)
        else:
            reader, writer = await asyncio.open_connection(sock=await dial(parse_address(self.socket)))
        try:
            writer.write(command.encode() + b"\n")
            answer = bytearray()
            while chunk := await reader.read(LARGEST_ANSWER):
                answer += chunk
                if len(answer) > LARGEST_ANSWER:
                    raise ValueError(f"{self.socket} answers `{command}` with more than {LARGEST_ANSWER} bytes")
        finally:
            writer.transport.abort()
        if not answer:
            raise ConnectionError(f"{self.socket} closed without an answer")
        return answer.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class State:
    """One subject's health: HAProxy's word, and for people the whole status and what the last check said."""

    word: str
    detail: str = ""


def parse_states(answer: str) -> dict[str, State]:
    """The states in a whole answer to `show stat`, by subject: each `backend`, then each `backend/server`.

    Raises:
        ValueError: not such an answer, or only the beginning of one.
    """
    if not answer.startswith("# pxname,svname,") or not answer.endswith("\n\n"):
        raise ValueError(f"not HAProxy's whole answer to `show stat`: {answer.strip()[:80]!r}")
    try:
        rows = [row for row in csv.DictReader(answer[2:].splitlines()) if row["svname"] != "FRONTEND"]
        if any(None in row.values() for row in rows):
            raise csv.Error("a row is too short")
        rows.sort(key=lambda row: row["svname"] != "BACKEND")
        return {_subject(row): _state(row) for row in rows}
    except (KeyError, csv.Error) as error:
        raise ValueError(f"HAProxy's answer to `show stat` lacks a column or is broken: {error}") from error


def _subject(row: Mapping[str, str]) -> str:
    return row["pxname"] if row["svname"] == "BACKEND" else f"{row['pxname']}/{row['svname']}"


def _state(row: Mapping[str, str]) -> State:
    status = row["status"]
    # `UP 1/3`, `DOWN (agent)`, `MAINT (via be/srv)`: the word is what stands before. `no check` is two words.
    word = status if status == "no check" else status.partition(" ")[0]
    parts = (status if status != word else "", row["check_status"].removeprefix("* "), row["last_chk"])
    return State(word, ", ".join(part for part in parts if part))


@dataclass(slots=True)
class View:
    """What was seen so far. A pure value but for its memory: times come in, changes go out."""

    states: dict[str, State] = field(default_factory=dict)
    _read_ns: dict[str, int] = field(default_factory=dict)
    """When the look began that last saw each subject as it is in `states`."""

    def update(self, states: Mapping[str, State], asked_ns: int, at_ns: int) -> list[Change]:
        """Take a look that was asked for at `asked_ns` and had come back by `at_ns`."""
        missing = {subject: State(GONE) for subject in self.states if subject not in states}
        return self._note({**states, **missing}, asked_ns, at_ns)

    def lose(self, backend: str, why: str, asked_ns: int, at_ns: int) -> list[Change]:
        """Take a look that failed. What the servers are is unknown, so only the backend's own state changes."""
        return self._note({backend: State(UNREADABLE, why)}, asked_ns, at_ns)

    def _note(self, states: Mapping[str, State], asked_ns: int, at_ns: int) -> list[Change]:
        changes = []
        for subject, state in states.items():
            before = self.states.get(subject, State(""))
            if state.word != before.word:
                since_ns = self._read_ns.get(subject, asked_ns)
                changes.append(Change(at_ns, since_ns, subject, before.word, state.word, state.detail))
            self.states[subject] = state
            self._read_ns[subject] = asked_ns
        return changes
