"""Second release."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Change the tables of the version before."""
    op.create_table(
        "controller",
        sa.Column("controller_id", sa.String(length=36), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("controller_id", name=op.f("pk_controller")),
    )
    op.create_table(
        "host_owner",
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("controller_id", sa.String(length=36), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_host_owner")),
    )
    op.create_table(
        "schedule",
        sa.Column("schedule_id", sa.String(length=36), nullable=False),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("zone", sa.Text(), nullable=True),
        sa.Column("every_ns", sa.BigInteger(), nullable=True),
        sa.Column("begins_ns", sa.BigInteger(), nullable=False),
        sa.Column("grace_ns", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("accounted_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name=op.f("pk_schedule")),
    )
    op.create_table(
        "occurrence",
        sa.Column("schedule_id", sa.String(length=36), nullable=False),
        sa.Column("due_ns", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("controller_id", sa.String(length=36), nullable=False),
        sa.Column("decided_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedule.schedule_id"], name=op.f("fk_occurrence_schedule_id_schedule")
        ),
        sa.PrimaryKeyConstraint("schedule_id", "due_ns", name=op.f("pk_occurrence")),
    )
    op.create_table(
        "outbox",
        sa.Column("run_key", sa.String(length=36), nullable=False),
        sa.Column("schedule_id", sa.String(length=36), nullable=False),
        sa.Column("due_ns", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("taken_by", sa.String(length=36), nullable=True),
        sa.Column("taken_until_ns", sa.BigInteger(), nullable=False),
        sa.Column("delivered_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["schedule_id", "due_ns"],
            ["occurrence.schedule_id", "occurrence.due_ns"],
            name=op.f("fk_outbox_schedule_id_occurrence"),
        ),
        sa.PrimaryKeyConstraint("run_key", name=op.f("pk_outbox")),
    )
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("run_key", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("controller_id", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("seen_ns", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("faults", sa.LargeBinary(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_run_run_key"), ["run_key"])
