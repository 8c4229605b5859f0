"""Which controller a command works with: this machine alone, or one that listens for hosts that joined."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from brownout_controller.cli.output import fail, progress
from brownout_controller.embedded import EmbeddedFailed, serve_one_machine
from brownout_controller.exit_codes import ExitCode
from brownout_controller.serving import Controller, open_authority, serve_fleet
from brownout_controller.store.store import Store, StoreError


@dataclass(frozen=True, slots=True)
class Access:
    """How to come by a fleet."""

    data_dir: Path
    listen: str = ""
    wait_hosts: int = 1
    wait_timeout_s: float = 30.0
    labels: dict[str, str] = field(default_factory=dict)


def open_store(data_dir: Path) -> Store:
    """The store of a data directory; ends the command when there can be none."""
    try:
        return Store(data_dir)
    except StoreError as error:
        fail(ExitCode.INTERNAL_ERROR, "store", str(error))


@asynccontextmanager
async def reach(access: Access, store: Store) -> AsyncIterator[Controller]:
    """A controller with its hosts connected; ends the command with 5 when they are not."""
    if not access.listen:
        try:
            async with serve_one_machine(store, access.labels) as controller:
                yield controller
        except EmbeddedFailed as error:
            fail(ExitCode.UNREACHABLE, "no-agent", str(error), "brownout doctor")
        return
    host, _, port = access.listen.rpartition(":")
    if not host or not port.isdigit():
        fail(ExitCode.USAGE, "usage", f"--listen {access.listen}: not HOST:PORT")
    try:
        async with serve_fleet(store, open_authority(access.data_dir), host, int(port)) as controller:
            progress().print(f"listening on {access.listen}, waiting for {access.wait_hosts} hosts")
            if not await controller.fleet.wait_for(access.wait_hosts, access.wait_timeout_s):
                here = ", ".join(state.name for state in controller.fleet.connected) or "none"
                message = f"{access.wait_hosts} hosts are wanted, connected within {access.wait_timeout_s:g} s: {here}"
                fail(ExitCode.UNREACHABLE, "no-hosts", message, "on each host: brownout-agent run; its log says why")
            yield controller
    except OSError as error:
        fail(ExitCode.UNREACHABLE, "cannot-listen", str(error), "choose another --listen")
