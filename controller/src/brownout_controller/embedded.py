"""One-machine mode: a controller in this process, with an agent and an injector of its own, and nothing set up.

Everything is temporary: authority, identity, socket, journal. Agent and injector die with this process; the injector
undoes everything first.
"""

import asyncio
import os
import platform
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from brownout_controller.audit.entry import Auditor
from brownout_controller.serving import Controller, open_authority, serve_fleet
from brownout_controller.store.database import Database
from brownout_controller.store.identities import Identities
from brownout_controller.store.store import Store

READY_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 30.0


class EmbeddedFailed(Exception):
    """Agent or injector did not come up; the text says why, with what they printed."""


def host_name() -> str:
    """This machine's name, as a host of the fleet may be called."""
    return re.sub(r"[^a-z0-9.-]+", "-", platform.node().lower()).strip("-.")[:63] or "localhost"


@asynccontextmanager
async def serve_one_machine(
    store: Store, labels: Mapping[str, str], auditor: Auditor | None = None
) -> AsyncIterator[Controller]:
    """A controller with this machine as its only host, connected and ready.

    Raises:
        EmbeddedFailed: it did not come up.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="brownout-")))
        database = Database.in_folder(folder / "identities")
        stack.callback(database.close)
        identities = Identities(database)
        authority = open_authority(folder)
        controller = await stack.enter_async_context(serve_fleet(store, authority, "127.0.0.1", 0, identities, auditor))
        socket = folder / "injector.sock"
        parent = ["--parent", str(os.getpid())]
        injector_argv = ["brownout_agent.injector.main", "serve", "--embedded", "--socket", str(socket)]
        injector_argv += ["--state-dir", str(folder / "injector"), *parent]
        injector = await stack.enter_async_context(_child("injector", injector_argv, folder))
        await _join(controller, identities.create_token(), labels, folder)
        agent_argv = ["brownout_agent.agent.main", "run", "--injector-socket", str(socket), *parent]
        agent_argv += ["--state-dir", str(folder / "agent")]
        agent = await stack.enter_async_context(_child("agent", agent_argv, folder))
        if not await controller.fleet.wait_for(1, READY_TIMEOUT_S, with_injector=True):
            states = f"injector exit code {injector.returncode}, agent exit code {agent.returncode}"
            raise EmbeddedFailed(f"this machine's own agent did not connect ({states}):\n{_logs(folder)}")
        yield controller


async def _join(controller: Controller, token: str, labels: Mapping[str, str], folder: Path) -> None:
    argv = ["brownout_agent.agent.main", "join", "--controller", f"127.0.0.1:{controller.port}"]
    argv += ["--enrol-port", str(controller.enrol_port), "--token", token, "--ca-pin", controller.authority.pin]
    argv += ["--name", host_name(), "--wait", "10", "--state-dir", str(folder / "agent")]
    for key, value in labels.items():
        argv += ["--label", f"{key}={value}"]
    with (folder / "join.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-m", *argv, stdout=log, stderr=log)
        code = await process.wait()
    if code != 0:
        raise EmbeddedFailed(f"this machine's own agent could not join (exit code {code}):\n{_logs(folder)}")


@asynccontextmanager
async def _child(name: str, argv: list[str], folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of ours in a session of its own, so that Ctrl-C reaches this process alone; ended by SIGTERM."""
    with (folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", *argv), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _logs(folder: Path) -> str:
    return "\n".join(
        f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in sorted(folder.glob("*.log"))
    )
