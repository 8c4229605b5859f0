"""`brownout-injector`: serve, halt, resume, reap, doctor. Runs as root, opens no network socket."""

import argparse
import asyncio
import json
import logging
import os
import pwd
import signal
import sys
from contextlib import suppress
from pathlib import Path

from brownout_agent import __version__
from brownout_agent.host_log import HostLog
from brownout_agent.injector import confinement
from brownout_agent.injector import policy as policies
from brownout_agent.injector.admission import Admission
from brownout_agent.injector.halting import obey
from brownout_agent.injector.host_halt import halt_host
from brownout_agent.injector.journal import Journal, JournalError
from brownout_agent.injector.ledger import Ledger
from brownout_agent.injector.own_copy import OwnCopy
from brownout_agent.injector.policy import Policy
from brownout_agent.injector.reaper import Watchdog, reap, watch
from brownout_agent.injector.server import Door, capabilities
from brownout_agent.injector.stop_file import StopFile
from brownout_agent.injector.supervisor import Supervisor
from brownout_agent.kernel import limits, own_groups, service_manager
from brownout_agent.kernel.processes import ProcessKey

DEFAULT_SOCKET = Path("/run/brownout/injector.sock")
DEFAULT_STATE = Path("/var/lib/brownout/injector")
DEFAULT_POLICY = Path("/etc/brownout/policy.yaml")
EXIT_NOT_CLEAN = 13
REAPER_DONE_WITHIN_S = 20.0
"""The watchdog of an injector that was killed may be at work in the same journal."""
_STOPS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("brownout-injector")


async def serve(socket: Path, state: Path, policy: Policy, agent_uid: int) -> int:
    """Reap what an earlier life left, then serve until SIGTERM; undo everything before the end."""
    # The watchdog first: from the moment that the journal is ours somebody must be there to take it over.
    watchdog = Watchdog(state, os.getpid())
    process = watchdog.start()
    journal = Journal(state, REAPER_DONE_WITHIN_S)
    for fault_id, residue in reap(journal).residue.items():
        log.error("%s left residue: %s", fault_id, "; ".join(residue))
    if policy.file is None:
        log.error("refusing every fault: %s", policy.why)
    own_copy = OwnCopy(HostLog(state))
    admission = Admission(policy, Ledger(state), own_copy)
    door = Door(admission, own_copy, agent_uid)
    door.supervisor = supervisor = Supervisor(journal, admission, door.tell, door.ask_control)
    door.watchdog = watchdog
    stop = asyncio.Event()
    for number in _STOPS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await door.open(socket)
    log.info("serving on %s under %s", socket, policy.why)
    service_manager.tell("READY=1")
    async with asyncio.TaskGroup() as group:
        works = (
            supervisor.run(),
            supervisor.retry_leftovers(),
            watchdog.keep(process),
            obey(admission.stop_file, supervisor, door.tell_inspection),
            service_manager.keep_telling_that_we_live(),
        )
        tasks = [group.create_task(work) for work in works]
        await stop.wait()
        clean = await supervisor.shut_down()
        for task in tasks:
            task.cancel()
    server.close()
    socket.unlink(missing_ok=True)
    if clean:
        watchdog.end()
    own_copy.close()
    journal.close()
    for number in _STOPS:  # one more must not change the exit code
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    return 0 if clean else EXIT_NOT_CLEAN


def _serve(options: argparse.Namespace) -> int:
    if options.parent:
        limits.die_with_parent(options.parent, signal.SIGTERM)
    own_groups.settle_in()
    uid = pwd.getpwnam(options.agent_user).pw_uid if options.agent_user else os.geteuid()
    policy = policies.EMBEDDED if options.embedded else policies.load(options.policy)
    return asyncio.run(serve(options.socket, options.state_dir, policy, uid))


def _reap(options: argparse.Namespace) -> int:
    journal = Journal(options.state_dir, options.wait)
    reaped = reap(journal)
    for fault_id in reaped.clean:
        print(f"clean    {fault_id}")
    for fault_id, residue in reaped.residue.items():
        print(f"RESIDUE  {fault_id}: {'; '.join(residue)}")
    if reaped.unmarked:
        print(f"UNMARKED {options.state_dir}/journal cannot be written; the next reap looks at them again")
    if journal.damaged:
        print(f"DAMAGED  {options.state_dir}/journal: what could be read is undone; move it away to start anew")
    return EXIT_NOT_CLEAN if reaped.residue or journal.damaged else 0


def _halt(options: argparse.Namespace) -> int:
    stop_file = StopFile(policies.load(options.policy).stop_file)
    words = f"{options.reason or 'brownout-injector halt'} (uid {os.getuid()})"
    halted = halt_host(stop_file, options.state_dir, options.socket, words)
    for entry in halted.ended:
        print(f"ended      {entry.kind:<20} {entry.fault_id}")
    for fault_id, residue in halted.left.items():
        print(f"NOT ENDED  {fault_id}: {residue}")
    for trouble in halted.troubles:
        print(f"TROUBLE    {trouble}")
    if halted.is_complete:
        print(f"halted     by {stop_file.reason()}; to take orders again: brownout-injector resume")
    return 0 if halted.is_complete else EXIT_NOT_CLEAN


def _resume(options: argparse.Namespace) -> int:
    released = StopFile(policies.load(options.policy).stop_file).release()
    print("released: orders are taken again" if released else "this host was not halted")
    return 0


def _watch(options: argparse.Namespace) -> int:
    return watch(options.state_dir, ProcessKey(options.pid, options.start_ticks))


def _doctor(options: argparse.Namespace) -> int:
    policy = policies.load(options.policy)
    found = capabilities(policy.host((), frozenset()))
    halted = StopFile(policy.stop_file).reason() or ""
    if options.output == "json":
        plain = [{"kind": c.kind, "able": c.able, "reason": c.reason, "remedy": c.remedy} for c in found]
        refuses_all = policy.file is None
        print(json.dumps({"faults": plain, "policy": policy.why, "policy_refuses_all": refuses_all, "halted": halted}))
        return 0
    for capability in found:
        print(f"{'✓ able   ' if capability.able else '✗ cannot '} {capability.kind:<20} {capability.reason}".rstrip())
        if capability.remedy:
            print(f"{'':<31}{capability.remedy}")
    print(f"policy    {'refuses everything: ' if policy.file is None else ''}{policy.why}")
    if halted:
        print(f"HALTED    by {halted}; to take orders again: brownout-injector resume")
    for line in confinement.lines():
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="brownout-injector", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True)

    serving = commands.add_parser("serve", help="take orders from the agent on a unix socket")
    serving.add_argument("--agent-user", help="the user that the agent runs as; default: this one")
    serving.add_argument("--embedded", action="store_true", help="built-in modest policy of one-machine mode")
    serving.add_argument("--parent", type=int, metavar="PID", help="undo everything and end when this parent dies")
    serving.set_defaults(run=_serve)

    reaping = commands.add_parser("reap", help="undo and verify what a dead injector left; exit 13 if something stays")
    reaping.add_argument("--wait", type=float, default=REAPER_DONE_WITHIN_S, metavar="SECONDS", help="for the journal")
    reaping.set_defaults(run=_reap)

    halting = commands.add_parser("halt", help="end every fault of this host and take no more; 13 if not all is clean")
    halting.add_argument("--reason", default="", help="told to whoever asks why this host takes no orders")
    halting.set_defaults(run=_halt)

    resuming = commands.add_parser("resume", help="take orders again after a halt")
    resuming.set_defaults(run=_resume)

    watching = commands.add_parser("watch", help="wait for the injector's death, then reap (started by serve)")
    watching.add_argument("--pid", type=int, required=True)
    watching.add_argument("--start-ticks", type=int, required=True)
    watching.set_defaults(run=_watch)

    asking = commands.add_parser("doctor", help="what this host can do, and why not")
    asking.add_argument("-o", "--output", choices=["table", "json"], default="table")
    asking.set_defaults(run=_doctor)

    for command in (serving, halting):
        command.add_argument("--socket", type=Path, default=DEFAULT_SOCKET)
    for command in (serving, reaping, halting, watching):
        command.add_argument("--state-dir", type=Path, default=DEFAULT_STATE)
    for command in (serving, halting, resuming, asking):
        command.add_argument("--policy", type=Path, default=DEFAULT_POLICY)
    return parser


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    options = _parser().parse_args()
    try:
        raise SystemExit(options.run(options))
    except (JournalError, OSError, KeyError) as error:
        with suppress(BrokenPipeError):
            print(f"brownout-injector: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
