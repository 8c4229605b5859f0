"""Who may connect: join tokens, agents, the owner epoch."""

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

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
