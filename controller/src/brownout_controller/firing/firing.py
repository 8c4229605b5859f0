"""Who fires: of all controllers that find a due time, the one whose row comes first. No leader and no lock.

An occurrence's primary key is its schedule and its due time, and what is to be done about it stands in the outbox by
the same transaction: a controller that dies before has done nothing, one that dies after has left everything.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

from brownout_controller.firing.schedule import NS_PER_S, Schedule, Window, due_times
from brownout_controller.store.database import Database
from brownout_controller.store.schema import firing
from brownout_controller.store.upsert import insert_into

_AT_ONCE = 500
"""Due times in one transaction."""
_COLUMNS = [firing.schedules.c[name] for name in Schedule.__slots__]


class Fate(StrEnum):
    """What becomes of a due time; exactly one of these, for ever."""

    FIRED = "fired"
    SKIPPED = "skipped"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A due time and what became of it."""

    schedule_id: str
    due_ns: int
    outcome: Fate
    why: str
    """Why it was not fired; empty when it was."""


def run_key(schedule_id: str, due_ns: int) -> str:
    """The key of the run that an occurrence begins: whoever computes it, it is the same."""
    return str(uuid.uuid5(uuid.UUID(schedule_id), str(due_ns)))


class Firing:
    """The schedules of one database, as one controller sees them."""

    def __init__(self, database: Database, controller_id: str) -> None:
        self._database = database
        self._controller_id = controller_id

    def add(self, schedule: Schedule) -> None:
        """Keep a schedule; its due times count from its beginning on.

        Raises:
            StoreError: one with this id is there already.
        """
        row = {name: getattr(schedule, name) for name in Schedule.__slots__}
        with self._database.writing() as connection:
            connection.execute(insert(firing.schedules), {**row, "accounted_ns": schedule.begins_ns})

    def schedules(self) -> list[Schedule]:
        """Every schedule."""
        with self._database.reading() as connection:
            return [Schedule(*row) for row in connection.execute(select(*_COLUMNS)).all()]

    def due(self, schedule: Schedule, window: Window) -> list[int]:
        """The due times in a window, ns since the Unix epoch: what a dry run shows."""
        return list(due_times(schedule, window))

    def now_ns(self) -> int:
        """The clock that due times are held against: the database's, the same for every controller."""
        with self._database.reading() as connection:
            return self._database.now_ns(connection)

    def account(self, schedule: Schedule, now_ns: int, veto: Callable[[Schedule], str] = lambda _: "") -> int:
        """Decide every due time up to now that nobody has decided; returns how many fell to this controller.

        `veto` says why nothing may be fired now; "" lets it.
        """
        mine = 0
        while True:
            with self._database.writing() as connection:
                accounted_ns = connection.execute(
                    select(firing.schedules.c.accounted_ns).where(
                        firing.schedules.c.schedule_id == schedule.schedule_id
                    )
                ).scalar_one()
                found = list(islice(due_times(schedule, Window(accounted_ns, now_ns)), _AT_ONCE))
                if not found:
                    return mine
                why = veto(schedule)
                mine += self._decide(connection, [_judge(schedule, due_ns, now_ns, why) for due_ns in found], schedule)
                seen = update(firing.schedules).where(
                    firing.schedules.c.schedule_id == schedule.schedule_id,
                    firing.schedules.c.accounted_ns < found[-1],  # another controller may be further
                )
                connection.execute(seen.values(accounted_ns=found[-1]))

    def _decide(self, connection: Connection, judged: list[Occurrence], schedule: Schedule) -> int:
        """Insert what nobody else has inserted, and hand on what of that is fired."""
        now_ns = self._database.now_ns(connection)
        common = {"controller_id": self._controller_id, "decided_ns": now_ns}
        rows = [{name: getattr(one, name) for name in Occurrence.__slots__} | common for one in judged]
        table = firing.occurrences
        decided = insert_into(connection, table).values(rows).on_conflict_do_nothing()
        won = connection.execute(decided.returning(table.c.due_ns, table.c.outcome)).all()
        orders = [
            {
                "run_key": run_key(schedule.schedule_id, due_ns),
                "schedule_id": schedule.schedule_id,
                "due_ns": due_ns,
                "payload": schedule.payload,
                "attempts": 0,
                "taken_until_ns": 0,
            }
            for due_ns, outcome in won
            if outcome == Fate.FIRED
        ]
        if orders:
            connection.execute(insert(firing.outbox), orders)
        return len(won)

    def occurrences(self, schedule_id: str, limit: int = 1_000) -> list[Occurrence]:
        """What became of the latest due times, newest first."""
        table = firing.occurrences
        columns = [table.c[name] for name in Occurrence.__slots__]
        wanted = select(*columns).where(table.c.schedule_id == schedule_id).order_by(table.c.due_ns.desc())
        with self._database.reading() as connection:
            rows = connection.execute(wanted.limit(limit)).all()
        return [Occurrence(schedule, due_ns, Fate(fate), why) for schedule, due_ns, fate, why in rows]


def _judge(schedule: Schedule, due_ns: int, now_ns: int, veto: str) -> Occurrence:
    late_ns = now_ns - due_ns
    if late_ns > schedule.grace_ns:
        late = f"found {late_ns / NS_PER_S:.1f} s late, and {schedule.grace_ns / NS_PER_S:g} s are allowed"
        return Occurrence(schedule.schedule_id, due_ns, Fate.MISSED, f"no controller was awake: {late}")
    if veto:
        return Occurrence(schedule.schedule_id, due_ns, Fate.SKIPPED, veto)
    return Occurrence(schedule.schedule_id, due_ns, Fate.FIRED, "")
