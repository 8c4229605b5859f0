"""Where an agent's clock stands: whatever delays and drift, the truth lies within the stated error."""

import pytest
from brownout_controller.fleet.authority import Peer
from brownout_controller.fleet.clocks import DRIFT_PPM, FORGET_AFTER_NS, ClockEstimate, Exchange, measure
from brownout_controller.fleet.sessions import Session
from brownout_protos.v1 import fleet_pb2
from hypothesis import example, given
from hypothesis import strategies as st

MS = 1_000_000
S = 1_000 * MS
delays = st.integers(min_value=0, max_value=300 * MS)


@given(there=delays, back=delays, thinking=delays, offset=st.integers(min_value=-(10**15), max_value=10**15))
def test_the_true_offset_lies_within_the_error_of_one_exchange(
    there: int, back: int, thinking: int, offset: int
) -> None:
    sent = 5 * S
    received, answered = sent + there + offset, sent + there + thinking + offset
    exchange = measure(sent, received, answered, sent + there + thinking + back)
    assert abs(exchange.offset_ns - offset) <= exchange.error_ns + 1


@example(drift_ppm=-DRIFT_PPM, round_trips=[(0, 0), (0, 40_160_001)], age_s=2)
@given(
    drift_ppm=st.integers(min_value=-DRIFT_PPM, max_value=DRIFT_PPM),
    round_trips=st.lists(st.tuples(delays, delays), min_size=1, max_size=40),
    age_s=st.integers(min_value=0, max_value=600),
)
def test_a_stamp_that_arrives_late_has_an_error_that_covers_the_drift(
    drift_ppm: int, round_trips: list[tuple[int, int]], age_s: int
) -> None:
    def agents_clock(ours_ns: int) -> int:
        return ours_ns + 7 * S + ours_ns * drift_ppm // 10**6

    estimate = ClockEstimate()
    for number, (there, back) in enumerate(round_trips):
        sent = (700 + 2 * number) * S
        stamp = agents_clock(sent + there)
        estimate.add(measure(sent, stamp, stamp, sent + there + back))
    happened = 700 * S - age_s * S
    best = estimate.best_for(agents_clock(happened))
    assert abs(agents_clock(happened) - best.offset_ns - happened) <= best.error_ns + 3, "3 stamps rounded to 1 ns"


def test_a_good_exchange_of_long_ago_gives_way_to_a_fair_one_of_now() -> None:
    estimate = ClockEstimate()
    estimate.add(Exchange(0, 1, error_ns=1_000))
    estimate.add(Exchange(FORGET_AFTER_NS + S, 2, error_ns=1 * MS))
    now = estimate.best(FORGET_AFTER_NS + S)
    assert now is not None
    assert now.offset_ns == 2


def test_without_an_exchange_nothing_is_said_of_a_stamp() -> None:
    assert ClockEstimate().best(0) is None
    with pytest.raises(LookupError):
        ClockEstimate().best_for(0)


def test_an_answer_to_an_earlier_session_measures_nothing() -> None:
    peer = Peer("11111111-1111-1111-1111-111111111111", "a1", 1)
    earlier, later = Session(peer), Session(peer)
    earlier.ask_clock()
    later.ask_clock()
    late = fleet_pb2.ClockReply(number=earlier._number, received_boottime_ns=1, sent_boottime_ns=2)
    assert later.clock_answer(late, 10 * S) is None
