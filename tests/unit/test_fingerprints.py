"""Asking hosts for fingerprints: who answers what, when to ask again, and what is said of those that do not answer."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from brownout_agent.fingerprint import Fingerprint, Section, nothing_read, to_wire
from brownout_controller.record import ResidueState
from brownout_controller.running import fingerprints
from brownout_controller.running.fingerprints import Fingerprints
from brownout_protos.v1 import fault_pb2, fleet_pb2

FAULTS = {"app-1": {"f-1": "network.loss"}}
QUIET = {section.value: () for section in Section} | {"clock": ("1000",)}
CLEAN = Fingerprint(QUIET, {}, 0, "boot-1")
LEFT = Fingerprint({**QUIET, "nft": ("table inet brownout-3f",)}, {}, 0, "boot-1")


class Hosts:
    """Hosts on the other side of the wire: each answers as its script says; None is no answer."""

    def __init__(self, script: list[Fingerprint | None], connected: bool = True) -> None:
        self.script = script
        self.connected = connected
        self.questions: list[fault_pb2.TakeFingerprint] = []
        self.asking = Fingerprints(["/data", "/data", "/a"], self.send)

    def send(self, host: str, message: fleet_pb2.ControllerMessage) -> bool:
        if not self.connected:
            return False
        self.questions.append(message.fingerprint)
        if (answer := self.script.pop(0)) is not None:
            wire = to_wire(answer, message.fingerprint.fingerprint_id)
            asyncio.get_running_loop().call_soon(self.asking.heard, host, wire)
        return True

    async def before(self) -> None:
        self.asking.ask(["app-1"])
        while self.asking.waiting:
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(fingerprints, "GONE_WITHIN_S", 0.1)
    monkeypatch.setattr(fingerprints, "LOOK_AGAIN_AFTER_S", 0.01)


def run(told: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(told())


def test_a_clean_host_is_asked_once_before_and_once_after_with_the_folders_of_the_disk_faults() -> None:
    async def told() -> None:
        hosts = Hosts([CLEAN, CLEAN])
        await hosts.before()
        assert hosts.asking.missing(["app-1"]) == ()
        await hosts.asking.find_residue(FAULTS)
        (found,) = hosts.asking.residue(FAULTS)
        assert (found.state, len(hosts.questions)) == (ResidueState.CLEAN, 2)
        assert list(hosts.questions[0].folders) == ["/a", "/data"]

    run(told)


def test_what_goes_by_itself_a_moment_later_is_no_residue() -> None:
    async def told() -> None:
        hosts = Hosts([CLEAN, LEFT, LEFT, CLEAN])
        await hosts.before()
        await hosts.asking.find_residue(FAULTS)
        assert hosts.asking.residue(FAULTS)[0].state is ResidueState.CLEAN
        assert hosts.script == []

    run(told)


def test_what_stays_is_residue_when_time_is_up() -> None:
    async def told() -> None:
        hosts = Hosts([CLEAN, *[LEFT] * 100])
        await hosts.before()
        await hosts.asking.find_residue(FAULTS)
        assert hosts.asking.residue(FAULTS)[0].left == ("+ nft: table inet brownout-3f",)
        assert len(hosts.questions) > 2

    run(told)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "it did not answer in time"),
        (nothing_read("the injector closed the connection"), "the injector closed the"),
    ],
)
def test_a_host_that_says_nothing_afterwards_is_unknown_and_why_is_told(answer: Fingerprint | None, why: str) -> None:
    async def told() -> None:
        hosts = Hosts([CLEAN, *[answer] * 100])
        await hosts.before()
        await hosts.asking.find_residue(FAULTS)
        (found,) = hosts.asking.residue(FAULTS)
        assert found.state is ResidueState.UNKNOWN
        assert why in found.unread[0]

    run(told)


def test_a_host_that_is_gone_is_unknown_and_one_that_comes_back_in_time_is_asked() -> None:
    async def told() -> None:
        hosts = Hosts([CLEAN, CLEAN])
        await hosts.before()
        hosts.connected = False
        finding = asyncio.create_task(hosts.asking.find_residue(FAULTS))
        await asyncio.sleep(0.03)
        assert hosts.asking.residue(FAULTS)[0].unread == (
            "it was not looked at after the last undo: it is not connected",
        )
        hosts.connected = True
        await finding
        assert hosts.asking.residue(FAULTS)[0].state is ResidueState.CLEAN

    run(told)


def test_an_answer_to_nothing_and_an_answer_in_anothers_name_change_nothing() -> None:
    async def told() -> None:
        hosts = Hosts([None])
        hosts.asking.ask(["app-1"])
        hosts.asking.heard("app-1", to_wire(CLEAN, "made-up"))
        hosts.asking.heard("app-2", to_wire(CLEAN, hosts.questions[0].fingerprint_id))
        assert hosts.asking.missing(["app-1"]) == (
            "app-1 did not say what is on it before the first fault: it did not answer in time",
        )
        assert hosts.asking.missing(["app-2"]) != ()

    run(told)


def test_a_run_that_is_let_go_has_looked_at_nothing() -> None:
    async def told() -> None:
        hosts = Hosts([CLEAN])
        await hosts.before()
        (found,) = hosts.asking.residue(FAULTS)
        assert found.state is ResidueState.UNKNOWN
        assert "the run was let go before its end" in found.unread[0]

    run(told)
