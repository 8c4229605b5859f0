"""What many tests share: a database of either kind, the server behind one of them, and who may run beside whom."""

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_controller.store.database import Database
from xdist.scheduler import LoadScopeScheduling

from tests.support.postgres import Postgres, postgres


class _ByFile(LoadScopeScheduling):
    """One file's tests run in one process, and so do those of all files that inject.

    Whoever starts injectors judges what is on all of the machine, as the residue audit does; workers that are apart
    have a machine each. The groups of xdist 3.8 would say it better, but pytest 9 does not let it write them into the
    names of tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        are_apart = os.geteuid() == 0 and any("tests.support.apart" in worker for worker in self.config.getoption("tx"))
        return "this machine" if not are_apart and _injects(self.config.rootpath / file) else file


def pytest_configure() -> None:
    """A shell without job control has what it starts in the background ignore SIGINT, and so would every program here
    that a test interrupts. What is handled, and not ignored, is as ever in a new program (execve(2))."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def _injects(file: Path) -> bool:
    return file.parent.name in {"contract", "host"} or "pytest.mark.injects" in file.read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """How `make test` spreads what may run beside each other."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long begin first, so that nothing waits for them in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One real server for the whole session; each test makes a database of its own on it."""
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        made = Database.in_folder(tmp_path / "data")
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        made = Database.at(server.make_database())
    yield made
    made.close()
