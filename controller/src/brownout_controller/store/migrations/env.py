"""What Alembic runs for every command: our connection, our tables, and the caller's transaction."""

from alembic import context
from brownout_controller.store import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    render_as_batch=True,  # SQLite changes a table by making it anew
)
context.run_migrations()
