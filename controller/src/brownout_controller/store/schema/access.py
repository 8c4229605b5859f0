"""Who may do what: users, API tokens, plans that were made, approvals, limits, and requests that must happen once."""

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Integer, LargeBinary, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

users = Table(
    "api_user",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("grants", Text, nullable=False),  # JSON: a list of {role, environments, hosts}
    Column("disabled", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)

tokens = Table(
    "api_token",
    metadata,
    Column("token_id", String(12), primary_key=True),
    Column("digest", String(64), nullable=False),  # SHA-256 of a random secret; the secret itself is nowhere
    Column("user", String(63), ForeignKey("api_user.name"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("roles", Text),  # JSON: a list; null for all that its owner has
    Column("environments", Text),  # JSON: a list; null for all
    Column("created_by", String(63), nullable=False),
    Column("made_by", String(63), index=True),  # the token, or session, by means of which; null for none
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("used_ns", BigInteger),
    Column("revoked_ns", BigInteger),
)

plans = Table(
    "plan",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("author", String(63), nullable=False),
    Column("made_ns", BigInteger, nullable=False),
    Column("place", Text, nullable=False),  # JSON: {environment, hosts: [labels]}
    Column("request", LargeBinary, nullable=False),  # zlib of JSON {experiment, variables, seed}: makes the plan again
    Column("document", LargeBinary, nullable=False),  # zlib of the plan's JSON document
)

approvals = Table(
    "approval",
    metadata,
    Column("approval_id", Integer, primary_key=True, autoincrement=True),
    Column("digest", String(64), ForeignKey("plan.digest"), nullable=False, index=True),
    Column("approver", String(63), ForeignKey("api_user.name"), nullable=False),
    Column("given_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("withdrawn_ns", BigInteger),
)

blast_limits = Table(
    "blast_limit",
    metadata,
    Column("environment", String(63), primary_key=True),
    Column("hosts", Integer, nullable=False),
    Column("percent", Float, nullable=False),
    Column("version", Integer, nullable=False),
)

run_places = Table(
    "run_place",
    metadata,
    Column("run_number", Integer, ForeignKey("run.number"), primary_key=True),
    Column("place", Text, nullable=False),  # JSON: {environment, hosts: [labels]}
)

requests = Table(
    "api_request",
    metadata,
    Column("user", String(63), primary_key=True),
    Column("key", String(255), primary_key=True),  # what the client sent as Idempotency-Key
    Column("digest", String(64), nullable=False),  # SHA-256 of route and body
    Column("begun_ns", BigInteger, nullable=False),
    Column("status", Integer),  # null while it goes on, or when the controller died in the middle of it
    Column("answer", Text),
)
