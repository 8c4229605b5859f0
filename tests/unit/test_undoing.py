"""The one way to undo: holders first, then the fault's own undo, then what the kernel says; nothing raised is lost."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from brownout_agent.faults.contract import Record, Refusal
from brownout_agent.faults.cpu_load import CpuLoad
from brownout_agent.injector import undoing
from brownout_agent.injector.journal import Entry, Mark
from brownout_agent.injector.undoing import outlived, undo_and_verify, undo_entry
from brownout_agent.kernel.clock import boot_id
from brownout_agent.kernel.processes import ProcessKey, is_alive, key_of

PARAMETERS = {"percent": 50}


class Undone(CpuLoad):
    """`cpu.load`, which notes what it is asked, and raises or leaves what a test wants."""

    def __init__(self, undo_raises: Exception | None = None, residue: Any = ()) -> None:
        self._undo_raises = undo_raises
        self._residue = residue
        self.asked: list[tuple[str, Record[Any]]] = []
        self.holder: ProcessKey | None = None

    def undo(self, record: Record[Any]) -> None:
        assert self.holder is None or not is_alive(self.holder), "the holder must be dead by now"
        self.asked.append(("undo", record))
        if self._undo_raises:
            raise self._undo_raises

    def residue(self, record: Record[Any]) -> list[str]:
        self.asked.append(("residue", record))
        if isinstance(self._residue, Exception):
            raise self._residue
        left: list[str] = self._residue
        return left


@contextlib.contextmanager
def process() -> Iterator[tuple[ProcessKey, "subprocess.Popen[bytes]"]]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as started:
        key = key_of(started.pid)
        assert key is not None
        try:
            yield key, started
        finally:
            started.kill()


def record(fault: Undone, *holders: ProcessKey) -> Record[Any]:
    return Record("id-1", fault.Parameters.model_validate(PARAMETERS), {"cores": [0]}, 30.0, holders)


def entry(**more: Any) -> Entry:
    values = {"kind": "cpu.load", "parameters": PARAMETERS, "facts": {"cores": [0]}, "duration_s": 30.0}
    return Entry("id-1", Mark.ACTIVE, boot_id=boot_id(), **{**values, **more})


def catalogued(monkeypatch: pytest.MonkeyPatch, fault: Undone) -> Undone:
    monkeypatch.setattr(undoing, "catalogue", lambda: {"cpu.load": fault})
    return fault


def test_the_holder_dies_first_then_the_fault_is_undone_and_the_kernel_is_asked() -> None:
    fault = Undone()
    with process() as (key, started):
        fault.holder = key
        assert undo_and_verify(fault, record(fault, key), [key]) == []
        assert started.wait(10) == -signal.SIGKILL
    assert [what for what, _ in fault.asked] == ["undo", "residue"]


@pytest.mark.parametrize(
    ("undo_raises", "residue", "told"),
    [
        (None, ["a table is left"], ["a table is left"]),
        (OSError(16, "busy"), [], ["undo of cpu.load failed: [Errno 16] busy"]),
        (Refusal("not mine"), [], ["undo of cpu.load failed: not mine"]),
        (KeyError("x"), ["a table"], ["undo of cpu.load failed: KeyError: 'x'", "a table"]),
        (None, OSError(5, "I/O"), ["the kernel could not be asked about cpu.load: [Errno 5] I/O"]),
        (None, ValueError("?"), ["the kernel could not be asked about cpu.load: ValueError: ?"]),
        (
            None,
            None,
            ["the kernel could not be asked about cpu.load: TypeError: 'NoneType' object is not iterable"],
        ),
    ],
)
def test_whatever_is_raised_or_left_is_residue_and_the_kernel_is_asked_all_the_same(
    undo_raises: Exception | None, residue: Any, told: list[str]
) -> None:
    fault = Undone(undo_raises, residue)
    assert undo_and_verify(fault, record(fault), []) == told
    assert [what for what, _ in fault.asked] == ["undo", "residue"]


def test_a_holder_that_cannot_be_killed_is_residue_and_the_rest_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[ProcessKey]:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(undoing, "end_by_key", refuse)
    fault = Undone()
    assert undo_and_verify(fault, record(fault), [ProcessKey(1, 1)]) == [
        "its holder could not be killed: [Errno 1] not permitted"
    ]
    assert [what for what, _ in fault.asked] == ["undo", "residue"]


def test_holders_that_outlive_sigkill_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outlived([ProcessKey(7, 1), ProcessKey(8, 1)]) == [
        "holder process 7 outlived SIGKILL",
        "holder process 8 outlived SIGKILL",
    ]
    monkeypatch.setattr(undoing, "end_by_key", lambda keys, parting_s: list(keys))
    fault = Undone()
    assert undo_and_verify(fault, record(fault), [ProcessKey(7, 1)]) == ["holder process 7 outlived SIGKILL"]


def test_an_entry_of_the_journal_is_undone_from_what_stands_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = catalogued(monkeypatch, Undone())
    with process() as (key, started):
        assert undo_entry(entry(holders=(key,))) == []
        assert started.wait(10) == -signal.SIGKILL
        assert fault.asked == [(what, record(fault, key)) for what in ("undo", "residue")]


def test_an_entry_of_another_boot_is_clean_and_nothing_of_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = catalogued(monkeypatch, Undone())
    assert undo_entry(replace(entry(), boot_id="another")) == []
    assert fault.asked == []


def test_an_entry_whose_fault_is_not_installed_or_whose_parameters_do_not_fit_is_residue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = catalogued(monkeypatch, Undone())
    assert undo_entry(entry(kind="cpu.melt")) == [
        "no fault `cpu.melt` is installed here any more, so nothing can undo it"
    ]
    (told,) = undo_entry(entry(parameters={"percent": 500}))
    assert told.startswith("the parameters in the journal do not fit this version's cpu.load: ")
    assert fault.asked == []


def test_an_entry_that_nobody_can_read_is_residue_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("a plugin's mistake")

    monkeypatch.setattr(undoing, "catalogue", broken)
    assert undo_entry(entry()) == ["cpu.load could not be undone: RuntimeError: a plugin's mistake"]
