"""How long packets are held and in which order they go: draws, the line, and the judgement. No kernel, no clock."""

import math
import os
import random
import re
import statistics
from typing import Any

import pytest
from brownout_agent.faults.network_delays import Delays, Draws, Line
from brownout_agent.faults.network_latency import LatencyParameters, judge_latency
from brownout_agent.faults.network_queue import judge_passed
from brownout_agent.faults.network_scope import Scope
from brownout_agent.faults.network_tally import HELD_NAMES, Held, HeldTally
from brownout_agent.kernel.processes import key_of
from brownout_agent.kernel.tally import read_tally
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MS = 1_000_000
DRAWS = 20_000
EVERYONE = Scope(None, (), "any", "ingress", None, False, (), (22,))


def draws_ms(delays: Delays, seed: int = 1) -> list[float]:
    draws = Draws(delays, random.Random(seed))
    return [draws.next_ns() / MS for _ in range(DRAWS)]


# ---- draws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.0, 0.25, 0.8])
@pytest.mark.parametrize(
    ("distribution", "deviation_ms", "median_ms"),
    [
        # The standard deviation of a uniform distribution is its width by the root of 12.
        ("uniform", 40 / math.sqrt(12), 100.0),
        ("normal", 20.0, 100.0),
        # Of Pareto's with shape 3: median 2^(1/3), mean 3/2, variance 3/4.
        ("pareto", 20.0, 100 + 20 * (2 ** (1 / 3) - 1.5) / math.sqrt(0.75)),
    ],
)
def test_delays_have_the_mean_the_median_and_the_width_that_are_asked_correlated_or_not(
    distribution: Any, deviation_ms: float, median_ms: float, correlation: float
) -> None:
    delays = Delays(100.0, 20.0, distribution, correlation)
    drawn = draws_ms(delays)
    slack_ms = 4 * 20 / math.sqrt(DRAWS * (1 - correlation) / (1 + correlation))
    assert statistics.mean(drawn) == pytest.approx(100, abs=slack_ms)
    assert statistics.median(drawn) == pytest.approx(median_ms, abs=slack_ms)
    assert delays.median_ms == pytest.approx(median_ms)
    # A tail that ends at ten deviations is a little narrower than one that does not.
    assert statistics.stdev(drawn) == pytest.approx(deviation_ms, rel=0.15 if distribution == "pareto" else 0.05)
    assert min(drawn) >= 0
    assert max(drawn) <= delays.longest_ms


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
def test_each_delay_is_tied_to_the_one_before_as_much_as_is_asked(correlation: float) -> None:
    drawn = draws_ms(Delays(100.0, 5.0, "normal", correlation))
    assert statistics.correlation(drawn, drawn[1:] + drawn[:1]) == pytest.approx(correlation, abs=0.03)


def test_no_packet_leaves_before_it_came() -> None:
    assert min(draws_ms(Delays(10.0, 10.0, "normal", 0.0))) == 0
    assert set(draws_ms(Delays(10.0, 0.0, "uniform", 0.0))) == {10.0}


# ---- the line ---------------------------------------------------------------------------------------------------


def let_go(line: Line, until_ns: int) -> list[int]:
    return [waiting.number for waiting in line.take_due(until_ns)]


def test_a_packet_goes_when_it_is_due_and_not_before() -> None:
    line = Line(Delays(10.0, 0.0, "uniform", 0.0), random.Random(1), reorder=False)
    assert line.next_due_ns() is None
    line.take(7, b"", 1_000)
    line.take(8, b"", 2_000)
    assert line.is_fifo
    assert line.next_due_ns() == 10 * MS + 1_000
    assert let_go(line, 10 * MS + 999) == []
    assert let_go(line, 10 * MS + 1_000) == [7]
    assert let_go(line, 10 * MS + 5_000) == [8]


Arrivals = st.lists(st.tuples(st.integers(0, 5 * MS), st.sampled_from([b"a", b"b", b"c"])), min_size=1, max_size=60)


@given(Arrivals, st.integers(0, 2**32), st.sampled_from(["uniform", "normal", "pareto"]))
def test_packets_of_one_flow_keep_their_order_and_all_of_them_go(
    arrivals: list[tuple[int, bytes]], seed: int, distribution: Any
) -> None:
    line = Line(Delays(20.0, 20.0, distribution, 0.0), random.Random(seed), reorder=False)
    now_ns, flows = 0, {}
    for number, (gap_ns, flow) in enumerate(arrivals):
        now_ns += gap_ns
        flows[number] = flow
        line.take(number, flow, now_ns)
    gone = let_go(line, now_ns + 10_000 * MS)
    assert sorted(gone) == [*flows]
    for flow in set(flows.values()):
        assert (of_flow := [number for number in gone if flows[number] == flow]) == sorted(of_flow)


def test_with_reorder_packets_of_a_flow_overtake_one_another() -> None:
    line = Line(Delays(20.0, 20.0, "uniform", 0.0), random.Random(1), reorder=True)
    for number in range(50):
        line.take(number, b"", number)
    gone = let_go(line, 100 * MS)
    assert sorted(gone) == [*range(50)]
    assert gone != sorted(gone)


# ---- parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_parameters", "why"),
    [
        ({}, "latency"),
        ({"latency": "0ms"}, "greater than 0"),
        ({"latency": "31s"}, "less than or equal to 30000"),
        ({"latency": 100}, "has no unit"),
        ({"latency": "10ms", "jitter": "11ms"}, "`jitter` is larger than `latency`"),
        ({"latency": "10ms", "jitter": "1ms", "correlation": 100}, "`correlation` of 100 %"),
        ({"latency": "10ms", "distribution": "normal"}, "they need `jitter`"),
        ({"latency": "10ms", "reorder": True}, "they need `jitter`"),
        ({"latency": "10ms", "jitter": "1ms", "distribution": "gamma"}, "'uniform', 'normal' or 'pareto'"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_wrong(given_parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        LatencyParameters.model_validate(given_parameters)


def test_what_an_experiment_writes_is_what_is_meant() -> None:
    parameters = LatencyParameters.model_validate(
        {"latency": "150ms", "jitter": "20ms", "to": "10.0.0.9", "port": 5432, "direction": "egress"}
    )
    assert parameters.delays == Delays(150.0, 20.0, "uniform", 0.0)
    assert LatencyParameters.model_validate({"latency": "1s"}).direction == "ingress"


# ---- judgement --------------------------------------------------------------------------------------------------


def held(*delays_ms: float, received: int | None = None) -> Held:
    tally = HeldTally()
    for _ in range(len(delays_ms) if received is None else received):
        tally.note_received()
    for delay_ms in delays_ms:
        tally.note_released(round(delay_ms * MS))
    own = key_of(os.getpid())
    assert own is not None
    return Held.of(read_tally(own, tally.descriptor, HELD_NAMES))


@pytest.mark.parametrize("delay_ms", [0.0001, 0.01, 1.0, 33.3, 500.0, 30_000.0])
def test_a_tally_tells_a_delay_to_half_a_percent_in_another_process(delay_ms: float) -> None:
    told = held(*[delay_ms] * 3)
    assert (told.received, told.released) == (3, 3)
    for share in (0.01, 0.5, 1.0):
        assert told.quantile_ms(share) == pytest.approx(max(delay_ms, 0.001), rel=0.0051)


def test_quantiles_are_those_of_the_packets_that_were_let_go() -> None:
    told = held(*range(1, 101))
    assert told.quantile_ms(0.5) == pytest.approx(50, rel=0.006)
    assert told.quantile_ms(0.99) == pytest.approx(99, rel=0.006)
    with pytest.raises(ValueError, match="no packet was let go"):
        held().quantile_ms(0.5)


@pytest.mark.parametrize(
    ("latency_ms", "held_ms", "proved"),
    [
        (100, 100.4, True),
        (100, 97.2, True),
        (100, 96, False),
        (100, 104, False),
        (1, 1.4, True),
        (1, 1.6, False),
        (1, 0.001, False),
    ],
)
def test_a_latency_is_proved_by_the_median_of_what_was_held(latency_ms: int, held_ms: float, proved: bool) -> None:
    parameters = LatencyParameters.model_validate({"latency": f"{latency_ms}ms"})
    effect = judge_latency(parameters, EVERYONE, 20, held(*[held_ms] * 20))
    assert effect.asked == latency_ms
    assert effect.achieved == pytest.approx(max(held_ms, 0.001), rel=0.0051)
    assert effect.proved is proved


def test_packets_that_passed_without_being_held_keep_it_from_being_proved() -> None:
    parameters = LatencyParameters.model_validate({"latency": "10ms"})
    for passed, proved in ((0, True), (10, True), (11, False), (1_000, False)):
        effect = judge_passed(judge_latency(parameters, EVERYONE, 1_000, held(*[10.0] * 900)), 1_000, passed)
        assert effect.proved is proved
        assert (f"{passed} passed without being held" in effect.explanation) is bool(passed)


def test_where_nobody_talks_or_nothing_was_let_go_yet_nothing_is_proved() -> None:
    parameters = LatencyParameters.model_validate({"latency": "10ms"})
    nobody = judge_latency(parameters, EVERYONE, 0, held())
    assert (nobody.proved, nobody.achieved) == (False, None)
    assert nobody.explanation == "no packet matched: nobody talked to any peer during the fault"
    waiting = judge_latency(parameters, EVERYONE, 5, held(received=5))
    assert (waiting.proved, waiting.achieved) == (False, None)
    assert "none was held to its end" in waiting.explanation


def test_with_jitter_the_median_may_differ_as_far_as_chance_and_a_kept_order_explain() -> None:
    kept = LatencyParameters.model_validate({"latency": "100ms", "jitter": "50ms"})
    free = LatencyParameters.model_validate({"latency": "100ms", "jitter": "50ms", "reorder": True})
    for parameters, median_ms, packets, proved in (
        (kept, 145.0, 1_000, True),
        (kept, 90.0, 1_000, False),
        (kept, 60.0, 10, True),
        (free, 145.0, 1_000, False),
        (free, 105.0, 1_000, True),
    ):
        effect = judge_latency(parameters, EVERYONE, packets, held(*[median_ms] * packets))
        assert effect.proved is proved, effect.explanation
