"""The tables, as SQLAlchemy Core knows them. Times are nanoseconds since the Unix epoch."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

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
    Column("document", LargeBinary),  # zlib of the run's JSON document; written once, at the end
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

tokens = Table(
    "join_token",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of a random secret; the secret itself is nowhere
    Column("expires_ns", BigInteger, nullable=False),
    Column("used_ns", BigInteger),
    Column("agent_id", String(36)),
)

agents = Table(
    "agent",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("enrolled_ns", BigInteger, nullable=False),
    Column("host", Text),
    Column("seen_ns", BigInteger),
)

epochs = Table(
    "owner_epoch",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=True),
    Column("taken_ns", BigInteger, nullable=False),
)
