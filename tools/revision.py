"""Write the migration from the newest version of the tables to what `store/schema` says now.

    .venv/bin/python tools/revision.py "what it brings"     a new file in store/migrations/versions
    .venv/bin/python tools/revision.py --amend              the newest one again; only while it is not released

Read what it wrote: Alembic cannot see that a column was renamed, nor what to put into a new one of old rows.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations.ops import UpgradeOps
from brownout_controller.store import migrating, schema
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

VERSIONS = migrating.MIGRATIONS / "versions"
TEMPLATE = '''"""{summary}."""

import sqlalchemy as sa
from alembic import op

revision = "{version}"
down_revision = "{before}"


def upgrade() -> None:
    """Change the tables of the version before."""
    {body}
'''


def difference(before: str) -> UpgradeOps:
    """What is still to be done to the tables of version `before`."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/x.db")
        with engine.begin() as connection:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(migrating.MIGRATIONS))
            command.upgrade(config, before)
            found = produce_migrations(_context(connection), schema.metadata).upgrade_ops
        engine.dispose()
    assert found is not None
    return found


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"target_metadata": schema.metadata})


def write(before: str, version: str, name: str) -> Path:
    """The file of `version`."""
    body = render_python_code(difference(before), render_as_batch=True)
    # The generator's own remarks say nothing to a reader.
    body = re.sub(r"\n? *# ###.*", "", body).strip()
    path = VERSIONS / f"{version}_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.py"
    path.write_text(TEMPLATE.format(summary=name[0].upper() + name[1:], version=version, before=before, body=body))
    for action in (["format", "--quiet"], ["check", "--fix", "--quiet"]):
        subprocess.run([Path(sys.executable).with_name("ruff"), *action, path], check=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="what it brings, in a few words")
    parser.add_argument("--amend", action="store_true", help="write the newest one again")
    arguments = parser.parse_args()
    newest = migrating.newest()
    if arguments.amend:
        (path,) = VERSIONS.glob(f"{newest}_*.py")
        before = migrating.known()[-2]
        print(write(before, newest, path.stem[5:].replace("_", " ")))
    elif arguments.name:
        print(write(newest, f"{int(newest) + 1:04}", arguments.name))
    else:
        parser.error("say what it brings, or --amend")


if __name__ == "__main__":
    main()
