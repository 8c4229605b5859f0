"""Logins by an OpenID provider: those that go on, who came of them, and the sessions of browsers."""

from sqlalchemy import BigInteger, Column, ForeignKey, String, Table, Text

from brownout_controller.store.schema.metadata import metadata

attempts = Table(
    "login_attempt",
    metadata,
    Column("state_digest", String(64), primary_key=True),  # SHA-256
    Column("nonce", String(64), nullable=False),
    Column("code_verifier", String(128), nullable=False),
    Column("begun_ns", BigInteger, nullable=False),
)

identities = Table(
    "login_identity",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user", String(63), ForeignKey("api_user.name"), nullable=False, unique=True),
)

handovers = Table(
    "login_handover",
    metadata,
    Column("code_digest", String(64), primary_key=True),  # SHA-256
    Column("challenge", String(43), nullable=False),
    Column("user", String(63), ForeignKey("api_user.name"), nullable=False),
    Column("session", String(63), nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("begun_ns", BigInteger, nullable=False),
)

sessions = Table(
    "login_session",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of what stands in the cookie
    Column("user", String(63), ForeignKey("api_user.name"), nullable=False),
    Column("begun_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
)
