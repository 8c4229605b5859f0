"""Firing by unique key, on both databases: each due time ends once, and what was fired is carried out under one key."""

import asyncio
import threading
import uuid

import pytest
from brownout_controller.firing.firing import Fate, Firing, run_key
from brownout_controller.firing.loop import keep_firing
from brownout_controller.firing.outbox import Order, Outbox
from brownout_controller.firing.schedule import NS_PER_S, Schedule, Window, interval_schedule
from brownout_controller.store.database import Database, StoreError

BEGIN = 1_790_000_000 * NS_PER_S


def schedule(grace_s: int = 3_600) -> Schedule:
    return interval_schedule(str(uuid.uuid4()), 10 * NS_PER_S, BEGIN, grace_s * NS_PER_S, "experiment")


def controller(database: Database) -> tuple[Firing, Outbox]:
    controller_id = str(uuid.uuid4())
    return Firing(database, controller_id), Outbox(database, controller_id)


def fates(firing: Firing, one: Schedule) -> list[tuple[int, Fate]]:
    return [((each.due_ns - BEGIN) // NS_PER_S, each.outcome) for each in reversed(firing.occurrences(one.schedule_id))]


def test_what_is_due_is_fired_once_and_handed_on_under_its_key(database: Database) -> None:
    firing, outbox = controller(database)
    one = schedule()
    firing.add(one)
    assert firing.account(one, BEGIN + 25 * NS_PER_S) == 2
    assert firing.account(one, BEGIN + 25 * NS_PER_S) == 0
    assert fates(firing, one) == [(10, Fate.FIRED), (20, Fate.FIRED)]
    orders = outbox.take(10)
    assert [order.run_key for order in orders] == [
        run_key(one.schedule_id, due) for due in firing.due(one, Window(BEGIN, BEGIN + 25 * NS_PER_S))
    ]
    assert outbox.take(10) == [], "they are taken"
    for order in orders:
        outbox.delivered(order.run_key)
    assert outbox.waiting() == 0


def test_what_is_found_too_late_is_missed_and_says_why(database: Database) -> None:
    firing, outbox = controller(database)
    one = schedule(grace_s=15)
    firing.add(one)
    firing.account(one, BEGIN + 40 * NS_PER_S)
    assert fates(firing, one) == [(10, Fate.MISSED), (20, Fate.MISSED), (30, Fate.FIRED), (40, Fate.FIRED)]
    assert "found 30.0 s late, and 15 s are allowed" in firing.occurrences(one.schedule_id)[-1].why
    assert len(outbox.take(10)) == 2


def test_what_may_not_be_fired_is_skipped_with_the_reason_and_never_comes_back(database: Database) -> None:
    firing, outbox = controller(database)
    one = schedule()
    firing.add(one)
    firing.account(one, BEGIN + 10 * NS_PER_S, lambda _: "halted by mary")
    firing.account(one, BEGIN + 20 * NS_PER_S)
    assert fates(firing, one) == [(10, Fate.SKIPPED), (20, Fate.FIRED)]
    assert firing.occurrences(one.schedule_id)[-1].why == "halted by mary"
    assert len(outbox.take(10)) == 1


def test_a_clock_that_goes_back_fires_nothing_again(database: Database) -> None:
    firing, _ = controller(database)
    one = schedule()
    firing.add(one)
    assert firing.account(one, BEGIN + 50 * NS_PER_S) == 5
    assert firing.account(one, BEGIN + 20 * NS_PER_S) == 0
    assert firing.account(one, BEGIN + 60 * NS_PER_S) == 1
    assert len(fates(firing, one)) == 6


def test_a_year_of_absence_is_accounted_for_in_full(database: Database) -> None:
    firing, _ = controller(database)
    one = interval_schedule(str(uuid.uuid4()), 6 * 3_600 * NS_PER_S, BEGIN, 60 * NS_PER_S, "")
    firing.add(one)
    assert firing.account(one, BEGIN + 365 * 86_400 * NS_PER_S) == 1_460
    assert len(firing.occurrences(one.schedule_id, 10_000)) == 1_460


def test_controllers_that_race_split_the_due_times_and_share_none(database: Database) -> None:
    one = schedule()
    controller(database)[0].add(one)
    mine: list[int] = []

    def race(skew_s: int) -> None:
        firing, _ = controller(database)
        mine.append(sum(firing.account(one, BEGIN + (step * 10 + skew_s) * NS_PER_S) for step in range(60)))

    threads = [threading.Thread(target=race, args=(skew,)) for skew in (0, 3, 300, -300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    firing, outbox = controller(database)
    last = (59 * 10 + 300) // 10  # as far as the clock that is five minutes fast has seen
    assert sum(mine) == last
    assert [at for at, _ in fates(firing, one)] == [10 * n for n in range(1, last + 1)]
    keys = [order.run_key for order in outbox.take(1_000)]
    assert len(keys) == len(set(keys)) == last


def test_an_order_whose_taker_died_is_taken_by_another(database: Database) -> None:
    firing, _ = controller(database)
    one = schedule()
    firing.add(one)
    firing.account(one, BEGIN + 10 * NS_PER_S)
    dead = Outbox(database, "dead", taken_for_ns=0)
    (order,) = dead.take(5)
    (again,) = Outbox(database, "alive").take(5)
    assert (again.run_key, order.attempts, again.attempts) == (order.run_key, 1, 2)


def test_takers_at_the_same_time_share_no_order(database: Database) -> None:
    firing, _ = controller(database)
    one = schedule()
    firing.add(one)
    firing.account(one, BEGIN + 2_000 * NS_PER_S)
    taken: list[str] = []

    def take() -> None:
        outbox = Outbox(database, str(uuid.uuid4()))
        while orders := outbox.take(7):
            taken.extend(order.run_key for order in orders)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 200


def test_a_schedule_s_id_can_be_used_once(database: Database) -> None:
    firing, _ = controller(database)
    one = schedule()
    firing.add(one)
    with pytest.raises(StoreError):
        firing.add(one)
    assert firing.schedules() == [one]


def test_the_loop_carries_out_what_is_due_and_leaves_what_fails(database: Database) -> None:
    firing, outbox = controller(database)
    one = interval_schedule(str(uuid.uuid4()), 10 * NS_PER_S, firing.now_ns() - 35 * NS_PER_S, 60 * NS_PER_S, "hello")
    firing.add(one)
    done: list[Order] = []

    async def deliver(order: Order) -> None:
        if not done:
            done.append(order)
            raise RuntimeError("the first one fails")
        done.append(order)

    async def story() -> None:
        looping = asyncio.create_task(keep_firing(firing, outbox, deliver, look_every_s=0.05))
        async with asyncio.timeout(20):
            while len(done) < 3:
                await asyncio.sleep(0.01)
            while outbox.waiting() > 1:
                await asyncio.sleep(0.01)
        looping.cancel()
        await asyncio.gather(looping, return_exceptions=True)

    asyncio.run(story())
    assert {order.payload for order in done} == {"hello"}
    assert outbox.waiting() == 1, "the one that failed is still there, for later"
