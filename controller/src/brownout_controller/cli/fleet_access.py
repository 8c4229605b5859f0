"""Which controller a command works with: this machine alone, or one that listens for hosts that joined."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from brownout_controller.analysis.wording import counted
from brownout_controller.audit.checkpoint import CheckpointError
from brownout_controller.audit.entry import Auditor
from brownout_controller.cli.auditing import local_audit
from brownout_controller.cli.output import fail, progress
from brownout_controller.cli.settings import authority_key, database_url
from brownout_controller.embedded import EmbeddedFailed, serve_one_machine
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.authority import Authority, AuthorityError
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.serving import Controller, open_authority, serve_fleet
from brownout_controller.store.database import StoreError
from brownout_controller.store.store import Store

_PORTS = 65_535
"""The next port is for enrolment, so the last one cannot be chosen."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to come by a fleet."""

    data_dir: Path
    listen: str = ""
    wait_hosts: int = 1
    wait_timeout_s: float = 30.0
    labels: dict[str, str] = field(default_factory=dict)


@contextmanager
def open_store(data_dir: Path) -> Iterator[Store]:
    """The store of a data directory; ends the command with 4 when there can be none, or nothing can be kept in it."""
    try:
        store = Store(data_dir, database_url())
        try:
            yield store
        finally:
            store.close()
    except StoreError as error:
        fail(ExitCode.REFUSED, "store", str(error), "make room, or choose another --data-dir")


def read_authority(data_dir: Path, store: Store) -> Authority:
    """The authority of a data directory and its database; ends the command with 4 when it cannot be used."""
    try:
        return open_authority(data_dir, store.database, authority_key())
    except (AuthorityError, CheckpointError) as error:
        fail(ExitCode.REFUSED, "authority", str(error))


@asynccontextmanager
async def reach(access: Access, store: Store) -> AsyncIterator[Controller]:
    """A controller with its hosts connected; ends the command with 5 when they are not."""
    async with AsyncExitStack() as stack:
        audit = stack.enter_context(local_audit(store, access.data_dir))
        if not access.listen:
            try:
                yield await stack.enter_async_context(serve_one_machine(store, access.labels, audit))
            except EmbeddedFailed as error:
                fail(ExitCode.UNREACHABLE, "no-agent", str(error), "brownout doctor")
            return
        controller = await _listen(access, store, stack, audit)
        where = f"{controller.host}:{controller.port}, enrolment on port {controller.enrol_port}"
        progress().print(f"listening on {where}; waiting for {counted(access.wait_hosts, 'host')}")
        if not await controller.fleet.wait_for(access.wait_hosts, access.wait_timeout_s):
            _too_few(access, controller.fleet)
        yield controller


async def _listen(access: Access, store: Store, stack: AsyncExitStack, audit: Auditor) -> Controller:
    host, _, port = access.listen.rpartition(":")
    if not host or not port.isdecimal() or not int(port) < _PORTS:
        fail(ExitCode.USAGE, "usage", f"--listen {access.listen}: not HOST:PORT with a port below {_PORTS}")
    try:
        authority = read_authority(access.data_dir, store)
        return await stack.enter_async_context(serve_fleet(store, authority, host, int(port), auditor=audit))
    except OSError as error:
        fail(ExitCode.UNREACHABLE, "cannot-listen", str(error), "choose another --listen")


def _too_few(access: Access, fleet: Fleet) -> NoReturn:
    here = ", ".join(host.name for host in fleet.connected) or "none"
    wanted = f"{counted(access.wait_hosts, 'host')} wanted, connected within {access.wait_timeout_s:g} s: {here}"
    away = [f"turned away: {name}: {reason}" for name, reason in sorted(fleet.turned_away.items())]
    help_text = "on each host: brownout-agent run; its log says why it cannot connect"
    fail(ExitCode.UNREACHABLE, "no-hosts", "\n".join([wanted, *away]), help_text)
