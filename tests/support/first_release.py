"""A data folder as the first release left it."""

import sqlite3
from contextlib import closing
from pathlib import Path


def lay_first_release(folder: Path) -> Path:
    """A folder with that release's database, rows and all."""
    folder.mkdir(mode=0o700)
    (folder / "brownout.db").touch(mode=0o600)
    with closing(sqlite3.connect(folder / "brownout.db")) as connection:
        connection.executescript(Path(__file__).with_suffix(".sql").read_text())
    return folder
