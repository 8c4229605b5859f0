"""Who may connect: join tokens, agents, the owner epoch."""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

tokens = Table(
    "join_token",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of a random secret; the secret itself is nowhere
    Column("expires_ns", BigInteger, nullable=False),
    Column("created_ns", BigInteger),
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
    Column("serial", String(40)),  # of the certificate that it was given last, in hex
    Column("previous_serial", String(40)),  # of the one before, until the last one was used
    Column("request_key", String(64)),  # SHA-256 of the public key that was asked for last
    Column("certificate_pem", LargeBinary),  # the last one, to be given again when its answer was lost
    Column("expires_ns", BigInteger),
    Column("generation", Integer),  # of the authority that signed the certificate that it used last
    Column("trusts", String(64)),  # SHA-256 of the authorities that it said it trusts
    Column("withdrawn_ns", BigInteger),
    Column("withdrawn_as", String(16)),  # revoked or locked
    Column("withdrawn_reason", Text),
    Index("ix_agent_withdrawn_ns", "withdrawn_ns"),
)

epochs = Table(
    "owner_epoch",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=True),
    Column("taken_ns", BigInteger, nullable=False),
)
