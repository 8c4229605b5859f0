"""cpu.throttle without a host: what an order may say, what a quota lets through, and both versions' counters."""

from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.cpu_throttle import most_ns
from brownout_agent.faults.group_limit import Setting, SettingWatch
from brownout_agent.kernel.group_cpu import CpuClock, Throttling, throttling
from brownout_agent.quantities import parse_core_percent
from pydantic import ValidationError


@pytest.mark.parametrize(("written", "percent"), [("20%", 20), (0.5, 0.5), ("150%", 150), (819_200, 819_200)])
def test_a_quota_is_in_percent_of_one_core_and_may_be_of_several(written: object, percent: float) -> None:
    assert parse_core_percent(written) == percent


@pytest.mark.parametrize("written", [0, -1, "20 %", "0.2 cores", True, float("nan"), 819_201, None])
def test_what_is_no_percentage_of_a_core_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a percentage"):
        parse_core_percent(written)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "which process? Give `unit`, `process`, `pid`, `command`, `user`, `port` or `cgroup`"),
        ({"unit": "nginx.service", "process": "nginx"}, "`unit` means all that runs in it: leave the others out"),
        ({"unit": "nginx"}, "String should match pattern"),
        ({"unit": "../nginx.service"}, "String should match pattern"),
        ({"unit": "nginx.timer"}, "String should match pattern"),
        ({"process": "/usr/sbin/nginx"}, "did you mean nginx?"),
    ],
)
def test_an_order_says_whose_group_is_meant_in_one_way(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        catalogue()["cpu.throttle"].Parameters.model_validate({"quota": 20, **parameters})
    assert says in str(caught.value)


def test_a_quota_lets_one_more_period_through_than_went_by_and_a_tick_of_each_core() -> None:
    second_ns = 10**9
    assert most_ns(20, second_ns, 100_000, cores=1) == pytest.approx(0.2 * 1.1 * second_ns + 10_000_000)
    assert most_ns(150, 10 * second_ns, 50_000, cores=4) == pytest.approx(1.5 * 10.05 * second_ns + 40_000_000)


def test_both_versions_count_how_often_and_how_long_a_group_was_held_back(tmp_path: Path) -> None:
    assert throttling(tmp_path) == Throttling(0, 0, 0.0)
    stat = tmp_path / "cpu.stat"
    stat.write_text("usage_usec 7\nnr_periods 9\nnr_throttled 5\nthrottled_usec 1500000\n")
    assert throttling(tmp_path) == Throttling(9, 5, 1.5)
    stat.write_text("nr_periods 9\nnr_throttled 5\nthrottled_time 1500000000\n")
    assert throttling(tmp_path) == Throttling(9, 5, 1.5)


@pytest.mark.parametrize(
    ("file", "texts"),
    [
        ("cpu.stat", ["usage_usec 2000\nuser_usec 1\n", "usage_usec 5000\nuser_usec 1\n"]),
        ("cpuacct.usage", ["2000000\n", "5000000\n"]),
    ],
)
def test_a_groups_cpu_time_counts_from_when_the_clock_was_made_and_stays_when_it_is_gone(
    tmp_path: Path, file: str, texts: list[str]
) -> None:
    path = tmp_path / file
    path.write_text(texts[0])
    clock = CpuClock(tmp_path)
    assert clock.instrument == file
    assert clock.used_ns() == 0
    path.write_text(texts[1])
    assert clock.used_ns() == 3_000_000
    path.unlink()
    assert clock.used_ns() == 3_000_000


def test_a_setting_is_given_back_only_while_it_is_ours_and_gone_is_no_trouble(tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    setting = Setting(str(file), "max 100000", "20000 100000")
    for said in ("max 100000", "30000 100000"):
        file.write_text(said)
        setting.give_back()
        assert file.read_text() == said
    file.write_text("20000 100000\n")
    setting.give_back()
    assert file.read_text() == "max 100000"
    file.unlink()
    setting.give_back()
    assert not file.exists()


def test_a_watch_tells_what_it_found_first_instead_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    watch = SettingWatch([Setting(str(file), "max 100000", "20000 100000")])
    assert not watch.always_stood, "nobody has looked"
    file.write_text("20000 100000\n")
    assert watch.look()
    assert (watch.always_stood, watch.text) == (True, "")
    file.write_text("30000 100000\n")
    assert not watch.look()
    file.unlink()
    assert not watch.look()
    assert (watch.looks, watch.stood, watch.always_stood) == (3, 1, False)
    assert watch.text == f"; {file} said `30000 100000`, which somebody else wrote, at reading 2"
