"""Pacing and batching, with a probe whose answers the test decides."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from brownout_agent import observing
from brownout_agent.dialing import Answer, NotAskedError, ask_within
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.observe import Sample
from brownout_agent.observing import observe
from brownout_agent.pacing import Pace

EVERY_MS = 50


@dataclass
class Scripted:
    """A probe that does for its n-th question what `script` says, and notes when it was asked."""

    kind: ClassVar[str] = "scripted"
    summary: ClassVar[str] = "For tests."
    script: Callable[[int], Awaitable[Answer]]
    asked_ns: list[int] = field(default_factory=list)

    async def ask(self) -> Sample:
        sent_ns = boottime_ns()
        self.asked_ns.append(sent_ns)
        answer = await self.script(len(self.asked_ns) - 1)
        return Sample(sent_ns, (boottime_ns() - sent_ns) // 1_000, answer.ok, answer.outcome)


@dataclass
class Delivered:
    """What came out, and an event for when there is enough of it."""

    samples: list[Sample] = field(default_factory=list)
    missed: int = 0
    calls: int = 0
    enough: int = 10
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, samples: list[Sample], missed: int) -> None:
        self.samples += samples
        self.missed += missed
        self.calls += 1
        if len(self.samples) + self.missed >= self.enough:
            self.reached.set()


async def good(_: int) -> Answer:
    return Answer(ok=True, outcome="200")


async def observe_until_enough(probe: Scripted, delivered: Delivered, batch_s: float = 0.1) -> None:
    """Observe until `delivered` has enough, then cancel, and check that nothing is left running."""
    observer = asyncio.create_task(observe(probe, EVERY_MS, delivered, batch_s))
    async with asyncio.timeout(20):
        await delivered.reached.wait()
    observer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await observer
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_every_due_time_is_a_sample_or_missed_and_samples_come_in_order_of_sending() -> None:
    async def main() -> tuple[Scripted, Delivered]:
        probe, delivered = Scripted(good), Delivered(enough=20)
        await observe_until_enough(probe, delivered)
        return probe, delivered

    probe, delivered = asyncio.run(main())
    assert [sample.sent_ns for sample in delivered.samples] == probe.asked_ns
    span_ms = (probe.asked_ns[-1] - probe.asked_ns[0]) / 1e6
    # Asked and missed together fill the time exactly: no drift, however late single questions were.
    assert len(delivered.samples) + delivered.missed == pytest.approx(span_ms / EVERY_MS + 1, abs=1)
    assert delivered.calls >= 5, "batches, not one heap at the end"


def test_a_stalled_loop_skips_due_times_counts_them_and_never_bursts() -> None:
    async def main() -> tuple[Scripted, Delivered]:
        probe, delivered = Scripted(good), Delivered(enough=30)

        async def stall_once(number: int) -> Answer:
            if number == 5:
                time.sleep(0.32)  # noqa: ASYNC251 - the whole loop stands still, as on a host without CPU
            return Answer(ok=True, outcome="200")

        probe.script = stall_once
        await observe_until_enough(probe, delivered)
        return probe, delivered

    probe, delivered = asyncio.run(main())
    # The stall began at due time 5 and covers 6 to 11; at its end 11 is used at once and 6 to 10 are lost.
    assert delivered.missed >= 5
    begin_ns, every_ns = probe.asked_ns[0], EVERY_MS * 1_000_000
    # The first question too starts a little after its due time, hence the tolerance of a fifth of an interval.
    slots = [int((asked_ns - begin_ns) / every_ns + 0.2) for asked_ns in probe.asked_ns]
    assert len(slots) == len(set(slots)), "two questions for one due time"


def test_questions_overlap_where_they_outlast_the_interval_and_are_delivered_in_order() -> None:
    async def main() -> tuple[Scripted, Delivered]:
        async def first_hangs(number: int) -> Answer:
            await asyncio.sleep(0.4 if number == 0 else 0)
            return Answer(ok=number > 0, outcome="200" if number else "timeout")

        probe, delivered = Scripted(first_hangs), Delivered(enough=12)
        await observe_until_enough(probe, delivered)
        return probe, delivered

    probe, delivered = asyncio.run(main())
    assert delivered.samples[0].outcome == "timeout"
    assert [sample.sent_ns for sample in delivered.samples] == probe.asked_ns
    assert probe.asked_ns[3] - probe.asked_ns[0] < 350_000_000, "the hanging question held up the others"


def test_the_end_waits_a_moment_for_what_is_in_flight_and_calls_the_rest_missed() -> None:
    async def main() -> tuple[Scripted, Delivered]:
        begun = asyncio.Event()

        async def quick_then_never(number: int) -> Answer:
            if number == 1:
                begun.set()
            await (asyncio.sleep(0.1) if number == 0 else asyncio.Event().wait())
            return Answer(ok=True, outcome="200")

        probe, delivered = Scripted(quick_then_never), Delivered()
        observer = asyncio.create_task(observe(probe, EVERY_MS, delivered, batch_s=60))
        await asyncio.wait_for(begun.wait(), 10)
        observer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await observer
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return probe, delivered

    probe, delivered = asyncio.run(main())
    assert [sample.outcome for sample in delivered.samples] == ["200"]
    assert delivered.missed >= len(probe.asked_ns) - 1
    assert delivered.missed >= 1


def test_a_batch_that_is_being_delivered_when_observing_ends_is_not_lost() -> None:
    async def main() -> tuple[Scripted, list[Sample]]:
        delivering, may_go_on = asyncio.Event(), asyncio.Event()
        arrived: list[Sample] = []

        async def slowly(samples: list[Sample], _: int) -> None:
            delivering.set()
            await may_go_on.wait()
            arrived.extend(samples)

        probe = Scripted(good)
        observer = asyncio.create_task(observe(probe, EVERY_MS, slowly, batch_s=0.1))
        await asyncio.wait_for(delivering.wait(), 10)
        observer.cancel()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await observer
        return probe, arrived

    probe, arrived = asyncio.run(main())
    assert [sample.sent_ns for sample in arrived] == probe.asked_ns


def test_a_delivery_that_blocks_does_not_hold_up_the_pace_and_what_waits_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observing, "MOST_WAITING", 3)

    async def main() -> tuple[Scripted, Delivered]:
        delivered = Delivered(enough=12)
        may_go_on = asyncio.Event()

        async def blocked(samples: list[Sample], missed: int) -> None:
            await may_go_on.wait()
            await delivered(samples, missed)

        probe = Scripted(good)
        observer = asyncio.create_task(observe(probe, EVERY_MS, blocked, batch_s=0.06))
        async with asyncio.timeout(10):
            while len(probe.asked_ns) < 4:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # ten due times more, at none of which there is room
            asked = len(probe.asked_ns)
            may_go_on.set()
            await delivered.reached.wait()
        observer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await observer
        assert asked <= 3 + 3, "three waiting, and at most three in the batch that is being delivered"
        return probe, delivered

    probe, delivered = asyncio.run(main())
    assert delivered.missed >= 5
    assert [sample.sent_ns for sample in delivered.samples] == probe.asked_ns


def test_a_prober_that_cannot_ask_has_missed_and_says_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def starved(_: int) -> Answer:
        raise NotAskedError("too many open files")

    async def main() -> Delivered:
        delivered = Delivered(enough=5)
        await observe_until_enough(Scripted(starved), delivered)
        return delivered

    with caplog.at_level(logging.WARNING):
        delivered = asyncio.run(main())
    assert delivered.samples == []
    assert delivered.missed >= 5
    assert "scripted probe could not ask from this host: too many open files" in caplog.text


def test_a_probe_that_cannot_work_here_ends_observing_with_its_error() -> None:
    async def broken(_: int) -> Answer:
        raise ValueError("ca_file /nowhere: no such file")

    async def main() -> None:
        with pytest.raises(ValueError, match="ca_file /nowhere"):
            await asyncio.wait_for(observe(Scripted(broken), EVERY_MS, Delivered(), 0.1), 10)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_delivery_that_fails_ends_observing_with_its_error() -> None:
    async def fail(_: list[Sample], __: int) -> None:
        raise ConnectionError("the stream is gone")

    async def main() -> None:
        with pytest.raises(ConnectionError, match="the stream is gone"):
            await asyncio.wait_for(observe(Scripted(good), EVERY_MS, fail, 0.1), 10)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("every_ms", [49.9, 0, -1, float("nan"), float("inf")])
def test_faster_than_twenty_a_second_is_refused(every_ms: float) -> None:
    with pytest.raises(ValueError, match="every 50ms at the fastest"):
        asyncio.run(observe(Scripted(good), every_ms, Delivered()))


def test_a_timeout_that_fires_far_too_late_is_the_probers_own_and_not_the_targets() -> None:
    async def never() -> Answer:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def main() -> None:
        question = asyncio.create_task(ask_within(50, never()))
        await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251 - the prober gets no CPU while its timeout runs out
        with pytest.raises(NotAskedError, match="timeout of 50 ms fired after"):
            await question

    asyncio.run(main())


def test_a_pace_keeps_to_its_schedule_when_the_caller_is_late_by_less_than_an_interval() -> None:
    async def main() -> list[float]:
        pace, loop, due = Pace(0.05), asyncio.get_running_loop(), []
        for _ in range(6):
            await pace.next_due()
            due.append(loop.time())
            await asyncio.sleep(0.03)
        return due

    due = asyncio.run(main())
    steps = round((due[-1] - due[0]) / 0.05)
    assert due[-1] - due[0] == pytest.approx(steps * 0.05, abs=0.02), "lateness added up"


@pytest.mark.parametrize("every_s", [0, -1, float("nan"), float("inf")])
def test_a_pace_needs_an_interval(every_s: float) -> None:
    with pytest.raises(ValueError, match="is no interval"):
        Pace(every_s)
