"""What is due when, what became of each due time, and what is still to be handed on."""

from sqlalchemy import BigInteger, Column, ForeignKey, ForeignKeyConstraint, Integer, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

schedules = Table(
    "schedule",
    metadata,
    Column("schedule_id", String(36), primary_key=True),
    Column("cron", Text),  # five fields; either this or every_ns
    Column("zone", Text),
    Column("every_ns", BigInteger),
    Column("begins_ns", BigInteger, nullable=False),
    Column("grace_ns", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),  # what whoever delivers is to do; not ours to read
    Column("accounted_ns", BigInteger, nullable=False),  # every due time up to here has its occurrence
)

occurrences = Table(
    "occurrence",
    metadata,
    # This key decides who fires: of two controllers that find the same due time, one can insert it.
    Column("schedule_id", String(36), ForeignKey("schedule.schedule_id"), primary_key=True),
    Column("due_ns", BigInteger, primary_key=True),
    Column("outcome", String(8), nullable=False),  # fired, skipped or missed
    Column("why", Text, nullable=False),
    Column("controller_id", String(36), nullable=False),
    Column("decided_ns", BigInteger, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("run_key", String(36), primary_key=True),  # the run's own key: to deliver twice is to deliver once
    Column("schedule_id", String(36), nullable=False),
    Column("due_ns", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("taken_by", String(36)),
    Column("taken_until_ns", BigInteger, nullable=False),  # after this anybody may take it again
    Column("delivered_ns", BigInteger),
    ForeignKeyConstraint(["schedule_id", "due_ns"], ["occurrence.schedule_id", "occurrence.due_ns"]),
)
