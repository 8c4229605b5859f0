"""The tables of the first release: join tokens, agents, the owner epoch, runs and their events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "join_token",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("used_ns", sa.BigInteger),
        sa.Column("agent_id", sa.String(36)),
    )
    op.create_table(
        "agent",
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("enrolled_ns", sa.BigInteger, nullable=False),
        sa.Column("host", sa.Text),
        sa.Column("seen_ns", sa.BigInteger),
    )
    op.create_table(
        "owner_epoch",
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("taken_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "run",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("operator", sa.Text, nullable=False),
        sa.Column("plan_digest", sa.String(64), nullable=False),
        sa.Column("started_ns", sa.BigInteger, nullable=False),
        sa.Column("ended_ns", sa.BigInteger),
        sa.Column("verdict", sa.String(16)),
        sa.Column("exit_code", sa.Integer),
        sa.Column("headline", sa.Text),
        sa.Column("document", sa.LargeBinary),
    )
    op.create_table(
        "run_event",
        sa.Column("run_number", sa.Integer, sa.ForeignKey("run.number"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
