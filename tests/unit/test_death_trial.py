"""The death matrix's own judgement: what a look at the kernel can tell, and what it cannot."""

import os
import random
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest

from tests.support import deaths_kernel
from tests.support.deaths import Column, Outcome, Phase
from tests.support.deaths_kernel import ProcessReader
from tests.support.deaths_trial import AnyHost, Scene, _blind

BOUND_S = 1.0


def scene() -> Scene:
    return Scene(cast(AnyHost, None), (), Column("none", BOUND_S), Phase.UNDO, random.Random(1), BOUND_S)


def outcome(gone_after_s: float | None) -> Outcome:
    return Outcome("none", Phase.UNDO, "cpu.load", 1, was_there=True, gone_after_s=gone_after_s, bound_s=BOUND_S)


@pytest.mark.parametrize(
    ("there_until_s", "gone_after_s", "judgement"),
    [
        (0.7, 0.8, "good"),
        (0.1, 0.9, "good"),
        (0.98, 1.03, "late"),
        (0.3, 1.4, "censored"),
        (1.2, 9.0, "late"),
        (0.3, None, "late"),
    ],
)
def test_a_bound_between_two_looks_that_are_far_apart_tells_nothing(
    there_until_s: float, gone_after_s: float | None, judgement: str
) -> None:
    it = scene()
    it.there_until_s = {"cpu.load": there_until_s}
    found = outcome(gone_after_s)
    reason = _blind(it, found, since_s=0.0)
    assert ("censored" if reason else found.judgement) == judgement


def test_a_fault_counts_as_gone_when_the_look_that_missed_it_was_over_and_as_there_when_one_began() -> None:
    it = scene()
    it.see({"cpu.load"}, is_busy=True, began_s=time.monotonic() - 2)
    it.see({"cpu.load"}, is_busy=True, began_s=time.monotonic() - 1)
    began_s = time.monotonic()
    it.see(set(), is_busy=False, began_s=began_s)
    assert it.gone_at_s["cpu.load"] >= began_s
    assert it.there_until_s["cpu.load"] == pytest.approx(began_s - 1, abs=0.5)
    it.see({"cpu.load"}, is_busy=True, began_s=time.monotonic())
    assert "cpu.load" not in it.gone_at_s


def test_a_process_is_read_anew_after_an_exec_however_old_it_is(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    code = "import os,sys; open(sys.argv[1]).read(); os.execv('/bin/sleep', ['sleep', '60'])"
    with subprocess.Popen(["/usr/bin/python3", "-c", code, go]) as process:
        try:
            reader = ProcessReader()
            deadline_s = time.monotonic() + 10
            begun_s = time.monotonic()
            while time.monotonic() < begun_s + 2.5:  # until it is old enough to be remembered
                lines = {one.pid: one.line for one in reader.read()}
                time.sleep(0.1)
            assert str(go) in lines[process.pid]
            go.write_text("now")
            while "sleep 60" not in lines[process.pid]:
                assert time.monotonic() < deadline_s, lines[process.pid]
                lines = {one.pid: one.line for one in reader.read()}
        finally:
            process.kill()


def test_arguments_that_are_not_there_yet_in_the_middle_of_an_exec_are_not_remembered_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That moment cannot be held still in a kernel without CAP_SYS_RESOURCE, so its files are copied."""
    entry = tmp_path / "7"
    (entry / "ns").mkdir(parents=True)
    (entry / "ns/net").touch()
    (entry / "stat").write_bytes(Path("/proc/self/stat").read_bytes())
    (entry / "cmdline").write_bytes(b"")
    monkeypatch.setattr(deaths_kernel, "_PROC", tmp_path)
    monkeypatch.setattr(deaths_kernel, "_SETTLED_S", -1)
    reader = ProcessReader()
    assert [one.line for one in reader.read()] == [""]
    (entry / "cmdline").write_bytes(b"sleep\0" + b"60\0")
    assert [one.line for one in reader.read()] == ["sleep 60 "]
