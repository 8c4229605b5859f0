"""cpu.load without a CPU: parameters, the water level, and the regulator against a modelled host."""

import random

import pytest
from brownout_agent.faults.cpu_load import CpuLoadParameters, Regulator, fill_to_mean, is_proved
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

SHARE = st.floats(min_value=0, max_value=1)


@pytest.mark.parametrize("written", ["0-1,3", [3, 0, 1, 1], (0, 1, 3)])
def test_cores_are_a_list_or_a_range_sorted_and_each_once(written: object) -> None:
    assert CpuLoadParameters.model_validate({"percent": 50, "cores": written}).cores == (0, 1, 3)


def test_one_core_may_be_written_as_a_number() -> None:
    assert CpuLoadParameters.model_validate({"percent": "50%", "cores": 2}).cores == (2,)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "percent"),
        ({"percent": 0}, "above 0"),
        ({"percent": 101}, "up to 100"),
        ({"percent": float("nan")}, "not a percentage"),
        ({"percent": True}, "not a percentage"),
        ({"percent": 50, "of": "some"}, "'total' or 'own'"),
        ({"percent": 50, "cores": ""}, "0-3,5"),
        ({"percent": 50, "cores": []}, "at least 1"),
        ({"percent": 50, "cores": [-1]}, "greater than or equal to 0"),
        ({"percent": 50, "cores": [1.5]}, "integer"),
        ({"percent": 50, "cores": ["a", 1]}, "integer"),
        ({"percent": 50, "cores": [[0]]}, "integer"),
        ({"percent": 50, "cores": True}, "tuple"),
        ({"percent": 50, "nice": 20}, "less than or equal to 19"),
        ({"percent": 50, "core": 1}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_refused_and_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CpuLoadParameters.model_validate(wrong)


def test_an_even_host_is_filled_evenly() -> None:
    assert fill_to_mean([0.1, 0.1, 0.1], 0.5) == pytest.approx(0.5)


def test_a_core_above_the_mean_is_left_alone_and_the_rest_come_up_by_less() -> None:
    assert fill_to_mean([0.3, 0.0], 0.25) == pytest.approx(0.2)


def test_others_above_the_mean_leave_nothing_to_add() -> None:
    assert fill_to_mean([0.9, 0.4], 0.3) == pytest.approx(0.4)


@given(st.lists(SHARE, min_size=1, max_size=64), SHARE)
def test_the_filled_host_is_at_the_mean_wherever_others_leave_room(others: list[float], mean: float) -> None:
    level = fill_to_mean(others, mean)
    filled = sum(max(other, level) for other in others) / len(others)
    assert filled == pytest.approx(max(mean, sum(others) / len(others)), abs=1e-9)


@pytest.mark.parametrize("target", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("rivals", [(0.0, 0.0), (0.2, 0.2), (0.3, 0.0)])
@pytest.mark.parametrize("seen_too_small_by", [0.0, 0.04])
def test_the_mean_over_twenty_seconds_comes_to_the_target(
    target: float, rivals: tuple[float, float], seen_too_small_by: float
) -> None:
    """The host as /proc/stat shows it: noisy, in whole ticks of 10 ms, and blind to a part of what we burn."""
    noise = random.Random(7)
    regulator = Regulator(target, [0.0, 0.0])
    levels = [target, target]
    seen = []
    for _ in range(80):
        own = list(levels)
        busy = [
            round(min(max(mine * (1 - seen_too_small_by) + rival + noise.gauss(0, 0.03), 0), 1) * 25) / 25
            for mine, rival in zip(own, rivals, strict=True)
        ]
        seen.append(sum(busy) / 2)
        levels = regulator.step(0.25, busy, own)
    assert sum(seen) / len(seen) == pytest.approx(target, abs=0.01)


def test_a_starved_regulator_does_not_run_away() -> None:
    """Quota or rival keep the workers at nothing for a minute; once they may run, the host does not overshoot."""
    regulator = Regulator(0.5, [0.0])
    for _ in range(240):
        levels = regulator.step(0.25, [0.0], [0.0])
    assert levels[0] <= 0.65
    for _ in range(40):
        levels = regulator.step(0.25, levels, levels)
    assert levels[0] == pytest.approx(0.5, abs=0.02)


def test_levels_are_shares_of_a_core_whatever_was_seen() -> None:
    regulator = Regulator(1.0, [0.0, 0.0])
    for busy in ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0]):
        assert all(0 <= level <= 1 for level in regulator.step(5.0, busy, [0.0, 0.0]))


@pytest.mark.parametrize(
    ("of", "asked", "achieved", "own", "proved"),
    [
        ("total", 50, 52.9, 20, True),
        ("total", 50, 46.9, 46, False),
        ("total", 50, 53.1, 20, False),
        ("total", 30, 30.5, 0.2, False),
        ("own", 50, 47.5, 47.5, True),
        ("own", 2, 0.1, 0.1, False),
        ("total", 2, 1.9, 0.05, False),
        ("total", 2, 2.2, 1.5, True),
    ],
)
def test_proved_is_what_was_asked_with_a_part_of_the_faults_own(
    of: str, asked: float, achieved: float, own: float, proved: bool
) -> None:
    assert is_proved(of, asked, achieved, own) is proved
