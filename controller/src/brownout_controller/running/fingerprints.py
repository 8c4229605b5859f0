"""Fingerprints of a run's hosts, before its first fault and after its last undo."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping

from brownout_agent.fingerprint import Fingerprint, from_wire
from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.analysis.residue import find_residue, unknown
from brownout_controller.record import HostResidue, ResidueState

ANSWER_WITHIN_S = 10.0
"""A look takes some tens of milliseconds; a host with a busy disk or CPU takes seconds."""
GONE_WITHIN_S = 5.0
"""What goes by itself until then is no residue: the kernel frees some things a moment later."""
LOOK_AGAIN_AFTER_S = 0.5

Send = Callable[[str, fleet_pb2.ControllerMessage], bool]
"""Sends a message to a host; False when it is not connected."""


class Fingerprints:
    """Asks hosts for fingerprints, keeps what they say, and finds the residue."""

    def __init__(self, folders: Iterable[str], send: Send) -> None:
        """`folders` are where the run's disk faults work."""
        self._folders = tuple(sorted(set(folders)))
        self._send = send
        self._asked: dict[str, str] = {}
        """Host by the id of the question that it has not answered yet."""
        self._before: dict[str, Fingerprint] = {}
        self._after: dict[str, Fingerprint] = {}
        self._why_not: dict[str, str] = {}
        self._is_over = False
        self._answered = asyncio.Event()

    @property
    def waiting(self) -> frozenset[str]:
        """The hosts that have not answered yet."""
        return frozenset(self._asked.values())

    def ask(self, hosts: Iterable[str]) -> None:
        """Ask these hosts; before `find_residue` their answers tell what was there before."""
        for host in hosts:
            question = fault_pb2.TakeFingerprint(fingerprint_id=str(uuid.uuid4()), folders=self._folders)
            if self._send(host, fleet_pb2.ControllerMessage(fingerprint=question)):
                self._asked[question.fingerprint_id] = host
            else:
                self._why_not[host] = "it is not connected"

    def heard(self, host: str, answer: fault_pb2.Fingerprint) -> None:
        """What a host has answered. An answer to nothing that it was asked is left alone."""
        if self._asked.get(answer.fingerprint_id) != host:
            return
        del self._asked[answer.fingerprint_id]
        fingerprint = from_wire(answer)
        if fingerprint.sections:
            (self._after if self._is_over else self._before)[host] = fingerprint
        else:
            self._why_not[host] = next(iter(fingerprint.unread.values()))
        self._answered.set()

    def missing(self, hosts: Iterable[str]) -> tuple[str, ...]:
        """Why some of these hosts cannot be compared with anything later, one line each."""
        return tuple(
            f"{host} did not say what is on it before the first fault: {self._reason(host)}"
            for host in hosts
            if host not in self._before
        )

    async def find_residue(self, faults: Mapping[str, Mapping[str, str]]) -> None:
        """Look at these hosts again, and once more while something is left, for GONE_WITHIN_S.

        `faults` are those that each host had: kinds by fault id.
        """
        self._is_over = True
        self._asked.clear()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            async with asyncio.timeout_at(begun_s + ANSWER_WITHIN_S):
                self.ask(faults)
                await self._all_answered()
                while (hosts := self._not_clean(faults)) and loop.time() < begun_s + GONE_WITHIN_S:
                    await asyncio.sleep(LOOK_AGAIN_AFTER_S)
                    self.ask(hosts)
                    await self._all_answered()
        except TimeoutError:
            return

    def _not_clean(self, faults: Mapping[str, Mapping[str, str]]) -> list[str]:
        return [found.host for found in self.residue(faults) if found.state is not ResidueState.CLEAN]

    def residue(self, faults: Mapping[str, Mapping[str, str]]) -> tuple[HostResidue, ...]:
        """What is known of each of these hosts now."""
        return tuple(self._residue_of(host, faults[host]) for host in sorted(faults))

    def _residue_of(self, host: str, faults: Mapping[str, str]) -> HostResidue:
        if host not in self._after:
            why = self._reason(host) if self._is_over else "the run was let go before its end"
            return unknown(host, f"it was not looked at after the last undo: {why}")
        if host not in self._before:
            return unknown(host, "it was not looked at before the first fault")
        return find_residue(host, faults, self._before[host], self._after[host])

    def _reason(self, host: str) -> str:
        if host in self.waiting:
            return "it did not answer in time"
        return self._why_not.get(host, "it was not among the hosts of this run then")

    async def _all_answered(self) -> None:
        while self._asked:
            self._answered.clear()
            await self._answered.wait()
