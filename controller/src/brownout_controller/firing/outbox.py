"""What was fired and is still to be carried out: delivered at least once, under a key that makes twice the same as
once.
"""

from dataclasses import dataclass

from sqlalchemy import select, update

from brownout_controller.store.database import Database
from brownout_controller.store.schema.firing import outbox

TAKEN_FOR_NS = 30 * 10**9
"""Who takes an order and says nothing for so long is taken for dead, and another takes it."""


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to carry out."""

    run_key: str
    """What is begun under a key that exists is not begun again."""
    schedule_id: str
    due_ns: int
    payload: str
    attempts: int
    """How often it was taken, this time included."""


class Outbox:
    """The orders of one database, as one controller takes them."""

    def __init__(self, database: Database, controller_id: str, taken_for_ns: int = TAKEN_FOR_NS) -> None:
        self._database = database
        self._controller_id = controller_id
        self._taken_for_ns = taken_for_ns

    def take(self, limit: int) -> list[Order]:
        """Orders that nobody else has taken, the oldest first."""
        columns = (outbox.c.run_key, outbox.c.schedule_id, outbox.c.due_ns, outbox.c.payload, outbox.c.attempts + 1)
        with self._database.writing() as connection:
            now_ns = self._database.now_ns(connection)
            free = outbox.c.delivered_ns.is_(None) & (outbox.c.taken_until_ns <= now_ns)
            found = select(*columns).where(free).order_by(outbox.c.due_ns).limit(limit)
            # SQLite has one writer, which this transaction is; SQLAlchemy leaves row locks out there.
            orders = [Order(*row) for row in connection.execute(found.with_for_update(skip_locked=True)).all()]
            taken = update(outbox).where(outbox.c.run_key.in_([order.run_key for order in orders]))
            values = {"taken_by": self._controller_id, "taken_until_ns": now_ns + self._taken_for_ns}
            connection.execute(taken.values(attempts=outbox.c.attempts + 1, **values))
        return orders

    def delivered(self, run_key: str) -> None:
        """It is carried out, or was before."""
        with self._database.writing() as connection:
            now_ns = self._database.now_ns(connection)
            open_ = (outbox.c.run_key == run_key) & outbox.c.delivered_ns.is_(None)
            connection.execute(update(outbox).where(open_).values(delivered_ns=now_ns))

    def waiting(self) -> int:
        """How many are not carried out yet."""
        with self._database.reading() as connection:
            return len(connection.execute(select(outbox.c.run_key).where(outbox.c.delivered_ns.is_(None))).all())
