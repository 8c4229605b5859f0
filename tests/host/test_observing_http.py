"""The observer with a real HTTP probe against a real nginx at its fastest pace: how exact are the times of asking."""

import asyncio
import contextlib
import statistics

from brownout_agent.observe import Sample
from brownout_agent.observing import FASTEST_MS, observe
from brownout_agent.probes.http import HttpProbe

from tests.support.residue import nothing_left
from tests.support.services import app_server, free_port

COUNT = 40


async def samples_at_the_fastest_pace(probe: HttpProbe) -> tuple[list[Sample], int]:
    """`COUNT` due times of samples, and how many were missed."""
    got: list[Sample] = []
    missed = 0
    enough = asyncio.Event()

    async def deliver(samples: list[Sample], missed_now: int) -> None:
        nonlocal missed
        got.extend(samples)
        missed += missed_now
        if len(got) + missed >= COUNT:
            enough.set()

    async with nothing_left():
        observer = asyncio.create_task(observe(probe, FASTEST_MS, deliver, batch_s=0.2))
        await asyncio.wait_for(enough.wait(), 30)
        observer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await observer
    return got, missed


def lateness_ms(samples: list[Sample]) -> list[float]:
    """How late each question was after its own due time; the most punctual of all defines the schedule."""
    phases = [(sample.sent_ns - samples[0].sent_ns) / 1e6 % FASTEST_MS for sample in samples]
    centred = [phase - FASTEST_MS if phase > FASTEST_MS / 2 else phase for phase in phases]
    return [phase - min(centred) for phase in centred]


def test_twenty_questions_a_second_are_asked_on_time_and_all_answered() -> None:
    port = free_port()
    with app_server("app-1", port):
        probe = HttpProbe(f"http://127.0.0.1:{port}/", identity_header="X-Served-By")
        samples, missed = asyncio.run(samples_at_the_fastest_pace(probe))
    assert all((sample.ok, sample.outcome, sample.identity) == (True, "200", "app-1") for sample in samples)
    assert len(samples) >= COUNT * 0.9
    assert missed <= COUNT * 0.1
    # Half of all within a tenth of the interval, with room for a machine that does other things meanwhile.
    assert statistics.median(lateness_ms(samples)) < FASTEST_MS / 10
