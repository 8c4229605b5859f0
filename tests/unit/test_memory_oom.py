"""memory.oom without a control group: parameters, what is refused, and which counts prove it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from brownout_agent.faults import memory_oom
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.memory_oom import MemoryOom, MemoryOomParameters, _KillMeter
from brownout_agent.faults.memory_room import Room
from pydantic import ValidationError

MIB = 2**20


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host where a group could be made, with 1 GiB of memory, half of it to be had."""
    monkeypatch.setattr(memory_oom, "_hog_parent", lambda: tmp_path)
    monkeypatch.setattr(memory_oom, "_PANIC_ON_OOM", tmp_path / "panic_on_oom")
    monkeypatch.setattr(memory_oom, "read_room", lambda: Room(1024 * MIB, 512 * MIB, "MemAvailable of the host"))
    return tmp_path


def test_what_is_left_out_is_64_mib_every_5_seconds() -> None:
    parameters = MemoryOomParameters()
    assert (parameters.size, parameters.every_s) == (64 * MIB, 5.0)
    assert MemoryOomParameters.model_validate({"every": "1500ms", "size": "1GiB"}).every_s == 1.5


@pytest.mark.parametrize("wrong", [{"size": "15MiB"}, {"every": "999ms"}, {"every": "2h"}, {"size": 0}, {"every": 5}])
def test_wrong_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MemoryOomParameters.model_validate(wrong)


def test_a_host_that_panics_where_a_group_is_short_of_memory_is_left_alone(elsewhere: Path) -> None:
    (elsewhere / "panic_on_oom").write_text("1\n")  # of the host's own memory only
    assert MemoryOom().detect(Host()).able
    (elsewhere / "panic_on_oom").write_text("2\n")
    found = MemoryOom().detect(Host())
    assert not found.able
    assert found.remedy == "sysctl vm.panic_on_oom=1"
    with pytest.raises(Refusal, match="the host would panic"):
        MemoryOom().prepare(MemoryOomParameters(), Host())


def test_what_would_eat_into_the_reserve_is_refused(elsewhere: Path) -> None:
    facts = MemoryOom().prepare(MemoryOomParameters.model_validate({"size": "256MiB"}), Host())
    assert facts["hog_parent"] == str(elsewhere)
    with pytest.raises(Refusal, match="257 MiB would eat into the reserve: 512 MiB are available") as caught:
        MemoryOom().prepare(MemoryOomParameters.model_validate({"size": "257MiB"}), Host())
    assert caught.value.remedy == "ask for at most `size: 256MiB`"


def test_where_no_group_can_be_limited_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_oom, "_hog_parent", lambda: None)
    assert "memory controller" in MemoryOom().detect(Host()).remedy
    with pytest.raises(Refusal, match="in which memory can be limited"):
        MemoryOom().prepare(MemoryOomParameters(), Host())


@pytest.mark.parametrize(
    ("kills", "of_host", "after_s", "asked", "proved"),
    [(1, 1, 0.5, 1, True), (0, 0, 0.5, 1, False), (0, 3, 4.0, 3, False), (2, 2, 4.0, 3, True), (3, 7, 4.0, 3, True),
     (18, 18, 40.0, 21, True), (17, 17, 40.0, 21, False)],
)  # fmt: skip
def test_the_groups_own_count_proves_it_and_keeps_the_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, of_host: int, after_s: float, asked: int, proved: bool
) -> None:
    clock_ns, counts = [0], {"group": 0, "host": 100}
    told: dict[str, Callable[..., int]] = {
        "boottime_ns": lambda: clock_ns[0],
        "times_killed": lambda _: counts["group"],
        "oom_kills": lambda: counts["host"],
    }
    for name, count in told.items():
        monkeypatch.setattr(memory_oom, name, count)
    meter = _KillMeter(tmp_path, 2.0)
    assert not meter.effect().proved
    clock_ns[0], counts["group"], counts["host"] = int(after_s * 1e9), kills, 100 + of_host
    meter.sample()
    counts["group"] = 0  # the group is gone, its count with it
    meter.sample()
    effect = meter.effect()
    assert (effect.asked, effect.achieved, effect.proved) == (asked, kills, proved)
    assert ("elsewhere on the host" in effect.explanation) == (of_host > kills)
