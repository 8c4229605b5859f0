"""The audit log: entries that hang together by their hashes, the end of the chain, and its signed checkpoints."""

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

entries = Table(
    "audit_entry",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3 ... without a gap
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("outcome", String(8), nullable=False),
    Column("origin", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),  # JSON: a mapping of texts
    Column("hash", String(64), nullable=False),
)

head = Table(
    "audit_head",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # always 1: whoever holds this row may append
    Column("sequence", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("sealed_sequence", BigInteger, nullable=False),  # of the newest checkpoint, 0 for none
    Column("sealed_ns", BigInteger, nullable=False),
)

checkpoints = Table(
    "audit_checkpoint",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("public_key", String(64), nullable=False),  # Ed25519, hex
    Column("signature", String(128), nullable=False),  # hex
)
