"""A controller that only fires: two schedulers in one process, started many times over and killed.

    python -m tests.support.firing_controller DATABASE_URL FOLDER LOG SPEED

Its clock is the database's, run SPEED times as fast from the moment in FOLDER/began on, so that hours of due times pass
in minutes. What it begins is a row of `run` under the order's key; LOG gets a line for each that was not there before.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from brownout_controller.firing.firing import Firing
from brownout_controller.firing.loop import keep_firing
from brownout_controller.firing.outbox import Order, Outbox
from brownout_controller.store.database import Database
from brownout_controller.store.owners import Owners
from brownout_controller.store.store import Carrier, RunExists, Store

SCHEDULERS = 2
LOOK_EVERY_S = 0.05
TAKEN_FOR_NS = 2 * 10**9


class FastClock(Firing):
    """The database's clock, faster."""

    def __init__(self, database: Database, controller_id: str, began_ns: int, speed: int) -> None:
        super().__init__(database, controller_id)
        self._began_ns = began_ns
        self._speed = speed

    def now_ns(self) -> int:
        return self._began_ns + (super().now_ns() - self._began_ns) * self._speed


async def fire(url: str, folder: Path, log: Path, speed: int) -> None:
    store = Store(folder, url)
    database = store.database
    began_ns = int((folder / "began").read_text())
    with Owners(database).life() as controller_id, log.open("ab", buffering=0) as file:

        async def deliver(order: Order) -> None:
            carrier = Carrier(controller_id, order.run_key, (), {})
            try:
                number = await asyncio.to_thread(store.begin_run, order.payload, "clock", "", time.time_ns(), carrier)
            except RunExists:
                return
            os.write(file.fileno(), f"{order.run_key} {number}\n".encode())

        print("firing", flush=True)
        firing = FastClock(database, controller_id, began_ns, speed)
        outboxes = [Outbox(database, controller_id, TAKEN_FOR_NS) for _ in range(SCHEDULERS)]
        await asyncio.gather(*(keep_firing(firing, outbox, deliver, look_every_s=LOOK_EVERY_S) for outbox in outboxes))


if __name__ == "__main__":
    asyncio.run(fire(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
