"""Runs and their events."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

runs = Table(
    "run",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False),
    Column("operator", Text, nullable=False),
    Column("plan_digest", String(64), nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("verdict", String(16)),
    Column("exit_code", Integer),
    Column("headline", Text),
    Column("document", LargeBinary),  # zlib of the run's JSON document: as it stood once in a while, and at the end
    Column("run_key", String(36), unique=True),  # makes the ids of its faults; the same key twice is the same run
    Column("controller_id", String(36)),  # who carries it through, or closes it
    Column("reach", Text),  # JSON: the names of its faults, and its hosts with their agents, for whoever must stop it
)

events = Table(
    "run_event",
    metadata,
    Column("run_number", Integer, ForeignKey("run.number"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("message", Text, nullable=False),
)
