"""Second release."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Change the tables of the version before."""
    op.create_table(
        "api_request",
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("begun_ns", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("user", "key", name=op.f("pk_api_request")),
    )
    op.create_table(
        "api_user",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("grants", sa.Text(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_api_user")),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("public_key", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_checkpoint")),
    )
    op.create_table(
        "audit_entry",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_entry")),
    )
    op.create_table(
        "audit_head",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("sealed_sequence", sa.BigInteger(), nullable=False),
        sa.Column("sealed_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "authority",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("cluster", sa.String(length=36), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_authority")),
    )
    op.create_table(
        "blast_limit",
        sa.Column("environment", sa.String(length=63), nullable=False),
        sa.Column("hosts", sa.Integer(), nullable=False),
        sa.Column("percent", sa.Float(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("environment", name=op.f("pk_blast_limit")),
    )
    op.create_table(
        "controller",
        sa.Column("controller_id", sa.String(length=36), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_ns", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("controller_id", name=op.f("pk_controller")),
    )
    op.create_table(
        "host_owner",
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("controller_id", sa.String(length=36), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_host_owner")),
    )
    op.create_table(
        "lever",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run_number", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("pulled_by", sa.Text(), nullable=False),
        sa.Column("pulled_ns", sa.BigInteger(), nullable=False),
        sa.Column("released_by", sa.Text(), nullable=True),
        sa.Column("released_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_lever")),
    )
    op.create_table(
        "login_attempt",
        sa.Column("state_digest", sa.String(length=64), nullable=False),
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("code_verifier", sa.String(length=128), nullable=False),
        sa.Column("begun_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("state_digest", name=op.f("pk_login_attempt")),
    )
    op.create_table(
        "plan",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("author", sa.String(length=63), nullable=False),
        sa.Column("made_ns", sa.BigInteger(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_plan")),
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
        sa.Column("accounted_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name=op.f("pk_schedule")),
    )
    op.create_table(
        "api_token",
        sa.Column("token_id", sa.String(length=12), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=True),
        sa.Column("environments", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(length=63), nullable=False),
        sa.Column("made_by", sa.String(length=63), nullable=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("used_ns", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["api_user.name"], name=op.f("fk_api_token_user_api_user")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_api_token")),
    )
    with op.batch_alter_table("api_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_api_token_made_by"), ["made_by"], unique=False)

    op.create_table(
        "approval",
        sa.Column("approval_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("approver", sa.String(length=63), nullable=False),
        sa.Column("given_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("withdrawn_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["approver"], ["api_user.name"], name=op.f("fk_approval_approver_api_user")),
        sa.ForeignKeyConstraint(["digest"], ["plan.digest"], name=op.f("fk_approval_digest_plan")),
        sa.PrimaryKeyConstraint("approval_id", name=op.f("pk_approval")),
    )
    with op.batch_alter_table("approval", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_approval_digest"), ["digest"], unique=False)

    op.create_table(
        "lever_answer",
        sa.Column("lever_number", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=63), nullable=False),
        sa.Column("clean", sa.Boolean(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("answered_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lever_number"], ["lever.number"], name=op.f("fk_lever_answer_lever_number_lever")),
        sa.PrimaryKeyConstraint("lever_number", "host", name=op.f("pk_lever_answer")),
    )
    op.create_table(
        "login_handover",
        sa.Column("code_digest", sa.String(length=64), nullable=False),
        sa.Column("challenge", sa.String(length=43), nullable=False),
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.Column("session", sa.String(length=63), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("begun_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["api_user.name"], name=op.f("fk_login_handover_user_api_user")),
        sa.PrimaryKeyConstraint("code_digest", name=op.f("pk_login_handover")),
    )
    op.create_table(
        "login_identity",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["api_user.name"], name=op.f("fk_login_identity_user_api_user")),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_login_identity")),
        sa.UniqueConstraint("user", name=op.f("uq_login_identity_user")),
    )
    op.create_table(
        "login_session",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.Column("begun_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["api_user.name"], name=op.f("fk_login_session_user_api_user")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_login_session")),
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
        "run_place",
        sa.Column("run_number", sa.Integer(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_number"], ["run.number"], name=op.f("fk_run_place_run_number_run")),
        sa.PrimaryKeyConstraint("run_number", name=op.f("pk_run_place")),
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
    with op.batch_alter_table("agent", schema=None) as batch_op:
        batch_op.add_column(sa.Column("serial", sa.String(length=40), nullable=True))
        batch_op.add_column(sa.Column("previous_serial", sa.String(length=40), nullable=True))
        batch_op.add_column(sa.Column("request_key", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("certificate_pem", sa.LargeBinary(), nullable=True))
        batch_op.add_column(sa.Column("expires_ns", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("generation", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("trusts", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("withdrawn_ns", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("withdrawn_as", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("withdrawn_reason", sa.Text(), nullable=True))
        batch_op.create_index("ix_agent_withdrawn_ns", ["withdrawn_ns"], unique=False)

    with op.batch_alter_table("join_token", schema=None) as batch_op:
        batch_op.add_column(sa.Column("created_ns", sa.BigInteger(), nullable=True))

    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("run_key", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("controller_id", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("reach", sa.Text(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_run_run_key"), ["run_key"])
