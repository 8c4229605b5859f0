"""`brownout-agent`: join, run. Unprivileged; dials out to the controller and listens nowhere."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before grpc is imported: we spawn by vfork, never by fork

import argparse
import asyncio
import logging
import re
import signal
import socket
import sys
from pathlib import Path

from brownout_agent import __version__
from brownout_agent.agent.controllers import is_address
from brownout_agent.agent.identity import JoinError, Membership, load
from brownout_agent.agent.joining import join
from brownout_agent.agent.session import Agent
from brownout_agent.kernel import limits

DEFAULT_STATE = Path("/var/lib/brownout/agent")
DEFAULT_SOCKET = Path("/run/brownout/injector.sock")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name: a-z, 0-9, dots and dashes, at most 63")
    return text


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not _LABEL.fullmatch(key) or not _LABEL.fullmatch(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a label; write it like role=app")
    return key, value


def _controller(text: str) -> str:
    if not is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return text


def _join(options: argparse.Namespace) -> int:
    port = int(options.controller.rpartition(":")[2])
    membership = Membership(
        controller=options.controller,
        enrol_port=options.enrol_port or port + 1,
        name=options.name,
        labels=dict(options.label),
    )
    asyncio.run(join(options.state_dir, membership, options.token, options.ca_pin, options.wait))
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.parent:
        limits.die_with_parent(options.parent, signal.SIGTERM)
    asyncio.run(_until_signalled(Agent(options.state_dir, load(options.state_dir), options.injector_socket)))
    return 0


async def _until_signalled(agent: Agent) -> None:
    task = asyncio.create_task(agent.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.gather(task, return_exceptions=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="brownout-agent", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True)

    joining = commands.add_parser("join", help="swap a one-time token for a certificate")
    joining.add_argument("--controller", type=_controller, required=True, metavar="HOST:PORT")
    joining.add_argument("--enrol-port", type=int, help="default: the controller's port + 1")
    joining.add_argument("--token", required=True, help="from `brownout token create`; good once")
    joining.add_argument("--ca-pin", required=True, metavar="sha256:HEX", help="printed beside the token")
    joining.add_argument("--name", type=_name, default=socket.gethostname().lower(), help="this host, for people")
    joining.add_argument("--label", type=_label, action="append", default=[], metavar="KEY=VALUE")
    joining.add_argument("--wait", type=float, default=300.0, metavar="SECONDS", help="for a controller to answer")
    joining.set_defaults(run=_join)

    running = commands.add_parser("run", help="stay connected and pass orders to the injector")
    running.add_argument("--injector-socket", type=Path, default=DEFAULT_SOCKET)
    running.add_argument("--parent", type=int, metavar="PID", help="end when this parent dies")
    running.set_defaults(run=_run)

    for command in (joining, running):
        command.add_argument("--state-dir", type=Path, default=DEFAULT_STATE)
    return parser


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    options = _parser().parse_args()
    try:
        raise SystemExit(options.run(options))
    except asyncio.CancelledError:
        raise SystemExit(0) from None
    except (JoinError, OSError) as error:
        print(f"brownout-agent: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
