"""A controller that serves a fleet in this process, with real agents, each a process of its own, that joined it."""

import asyncio
import contextlib
import datetime
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from brownout_agent.agent.identity import Identity, Membership, load
from brownout_agent.agent.joining import join
from brownout_controller.audit.entry import AuditEntry, Outcome
from brownout_controller.fleet.authority import AGENT_LIFE, Authority
from brownout_controller.serving import Controller, serve_fleet
from brownout_controller.store.store import Store

from tests.support.services import free_port

BIN = Path(sys.executable).parent


class Entries:
    """An auditor that keeps what it was told."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    def record(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    record_later = record

    def refusals(self, action: str = "") -> list[AuditEntry]:
        found = [one for one in self.entries if one.outcome is Outcome.REFUSED]
        return [one for one in found if not action or one.action == action]


@contextlib.asynccontextmanager
async def controller(
    folder: Path, port: int = 0, auditor: Entries | None = None, agent_life: datetime.timedelta = AGENT_LIFE
) -> AsyncIterator[Controller]:
    store = Store(folder)
    try:
        authority = Authority(folder / "authority", agent_life)
        async with serve_fleet(store, authority, "127.0.0.1", port or free_port(), auditor=auditor) as serving:
            yield serving
    finally:
        store.close()


def membership(serving: Controller, name: str = "app-1") -> Membership:
    return Membership(f"127.0.0.1:{serving.port}", serving.enrol_port, name, {"role": "app"})


async def joined(serving: Controller, folder: Path, name: str = "app-1") -> Path:
    token = serving.identities.create_token()
    await join(folder, membership(serving, name), token, serving.authority.pin, wait_s=10)
    return folder


async def identity(serving: Controller, folder: Path, name: str = "app-1") -> Identity:
    """The identity of an agent that has just joined."""
    return load(await joined(serving, folder, name))


@contextlib.asynccontextmanager
async def agent(folder: Path, socket: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    argv = [BIN / "brownout-agent", "run", "--state-dir", folder]
    argv += ["--injector-socket", socket or folder / "none.sock"]
    with (folder / "agent.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def injector(socket: Path, state: Path) -> AsyncIterator[None]:
    argv = [BIN / "brownout-injector", "serve", "--embedded", "--socket", socket, "--state-dir", state]
    with socket.with_suffix(".log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, stderr=log)
    try:
        await until(lambda: socket.is_socket() or process.returncode is not None, 40)
        assert process.returncode is None, socket.with_suffix(".log").read_text()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def said(folder: Path, text: str) -> None:
    """Wait until the agent that lives in `folder` has logged this."""
    await until(lambda: text in (folder / "agent.log").read_text())


async def until(holds: Callable[[], bool], within_s: float = 15) -> None:
    """Look often until something holds."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)


def agent_id(folder: Path) -> str:
    return load(folder).membership.agent_id
