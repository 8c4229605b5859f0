"""Which controllers there are, and which of them each host obeys."""

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

controllers = Table(
    "controller",
    metadata,
    Column("controller_id", String(36), primary_key=True),  # one life of one process; a restart is another controller
    Column("machine", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),  # by the database's clock
    Column("address", Text),  # HOST:PORT for agents; NULL where it told none
)

host_owners = Table(
    "host_owner",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("controller_id", String(36), nullable=False),
    Column("epoch", BigInteger, nullable=False),  # rises with every take-over and never falls
    Column("expires_ns", BigInteger, nullable=False),
    Column("description", Text),  # JSON: the host as its owner shows it; NULL while it is not connected
)
