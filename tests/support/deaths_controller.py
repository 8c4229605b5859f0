"""A controller for the death matrix: the product's own fleet server, told by lines of JSON what to order and when.

Run as a program it serves; `ControllerLink` is the other end of its pipes. Orders and stops go out at an instant that
the matrix chooses, which `brownout run` would not let it; whole runs of `brownout run` are killed in tests/e2e.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from brownout_agent.frames import to_value
from brownout_controller.fleet.sessions import LEASE_MS, Arrival
from brownout_controller.serving import Controller, open_authority, serve_fleet
from brownout_controller.store.store import Store
from brownout_protos.v1 import fault_pb2, fleet_pb2

_UP_WITHIN_S = 90.0


class ControllerLink:
    """Starts the controller, kills it, starts it again; knows which hosts it can order about."""

    def __init__(self, folder: Path, listen: str) -> None:
        self.folder = folder
        self.listen = listen
        self.reports: dict[str, str] = {}
        """The latest word on each fault that a host reported."""
        self.active_s: dict[str, float] = {}
        """When each fault was first reported to be in effect, on the monotonic clock."""
        self._ready: set[str] = set()
        self._changed = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it listens."""
        host, _, port = self.listen.rpartition(":")
        with (self.folder / "controller.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__, str(self.folder / "data"), host, port,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._process))
        try:
            await self._until(lambda: "" in self._ready, "the controller listens")
        except AssertionError as error:
            log_end = (self.folder / "controller.log").read_text(errors="replace")[-2000:]
            raise AssertionError(f"{error}; it says:\n{log_end}") from None

    async def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self.active_s.clear()
        self.reports.clear()
        if self._process is not None and self._reading is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            await self._reading
            self._ready.clear()

    async def join_token(self) -> dict[str, str]:
        """A one-time token and the pin of the authority."""
        brownout = Path(sys.executable).parent / "brownout"
        process = await asyncio.create_subprocess_exec(
            brownout,
            "token",
            "create",
            "--data-dir",
            self.folder / "data",
            "-o",
            "json",
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, "no token"
        token: dict[str, str] = json.loads(output)
        return token

    async def wait_ready(self, host: str) -> None:
        """Until the host is connected and has an injector."""
        await self._until(lambda: host in self._ready, f"{host} is connected, with its injector")

    def forget(self, host: str) -> None:
        """The host lost its power: its stream may look alive for a while."""
        self._ready.discard(host)

    def inject(self, host: str, fault_id: str, kind: str, parameters: dict[str, object], duration_s: float) -> None:
        """Order one fault."""
        fault = {"fault_id": fault_id, "kind": kind, "parameters": parameters, "duration_ms": round(duration_s * 1_000)}
        self._say({"host": host, "inject": fault})

    def stop(self, host: str, fault_id: str) -> None:
        """Order its end."""
        self._say({"host": host, "stop": fault_id})

    def _say(self, plain: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plain).encode() + b"\n")

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_UP_WITHIN_S), self._changed:
                await self._changed.wait_for(holds)
        except TimeoutError:
            raise AssertionError(f"not within {_UP_WITHIN_S:g} s: {what}") from None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            async with self._changed:
                if "ready" in said:
                    (self._ready.add if said["ready"] else self._ready.discard)(said["host"])
                else:
                    self.reports[said["fault_id"]] = said["text"]
                    if "state: ACTIVE" in said["text"]:
                        self.active_s.setdefault(said["fault_id"], time.monotonic())
                self._changed.notify_all()


# ---- the program ----------------------------------------------------------------------------------------------------


class _Driver:
    """Turns lines into orders, and what hosts say into lines."""

    def __init__(self, controller: Controller) -> None:
        self._fleet = controller.fleet

    def take(self, line: bytes) -> None:
        said = json.loads(line)
        host = self._fleet.hosts.get(said["host"])
        if host is None or host.session is None:
            return  # as a run's engine would find: it cannot be reached now
        if "stop" in said:
            stop = fault_pb2.Stop(fault_id=said["stop"], reason="the trial says so")
            host.session.send(fleet_pb2.ControllerMessage(stop=stop))
            return
        fault = said["inject"]
        order = fault_pb2.Inject(
            fault_id=fault["fault_id"],
            environment="staging",
            kind=fault["kind"],
            parameters={name: to_value(value) for name, value in fault["parameters"].items()},
            duration_ms=fault["duration_ms"],
            lease_ms=LEASE_MS,
            run_id="deaths",
        )
        host.session.send(fleet_pb2.ControllerMessage(inject=order))

    def heard(self, arrival: Arrival) -> None:
        host, message = arrival.host, arrival.message
        body = message.WhichOneof("body") if message is not None else ""
        if message is not None and body in {"report", "reply"}:
            told = getattr(message, str(body))
            _tell({"fault_id": told.fault_id, "text": str(told)})
        elif message is None or body in {"hello", "lease"}:
            ready = host.connected and host.hello.injector_attached and bool(host.able)
            _tell({"host": host.name, "ready": ready})


def _tell(plain: dict[str, Any]) -> None:
    print(json.dumps(plain), flush=True)


async def _stdin() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield line


async def _serve(folder: Path, host: str, port: int) -> None:
    store = Store(folder)
    async with serve_fleet(store, open_authority(folder), host, port) as controller:
        driver = _Driver(controller)
        controller.fleet.listen(driver.heard)
        _tell({"host": "", "ready": True})
        async for line in _stdin():
            driver.take(line)
    store.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
