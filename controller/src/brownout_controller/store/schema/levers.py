"""Halt levers, and what each host answered to them."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

levers = Table(
    "lever",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("run_number", Integer),  # NULL halts everything, and every run from then on
    Column("reason", Text, nullable=False),
    Column("pulled_by", Text, nullable=False),
    Column("pulled_ns", BigInteger, nullable=False),
    Column("released_by", Text),
    Column("released_ns", BigInteger),
)

answers = Table(
    "lever_answer",
    metadata,
    Column("lever_number", Integer, ForeignKey("lever.number"), primary_key=True),
    Column("host", String(63), primary_key=True),
    Column("clean", Boolean, nullable=False),
    Column("message", Text, nullable=False),
    Column("answered_ns", BigInteger, nullable=False),
)
