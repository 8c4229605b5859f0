"""A host goes from one controller to another and back while the one that loses it is stopped by SIGSTOP.

The controllers are processes on one PostgreSQL; the host is a real injector, which is killed now and then and started
again. What the stopped one orders when it goes on is shown to the injector after its rival's order, and its answers
are what counts.
"""

import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support.injectors import ACCEPTED, REFUSED, Client, connect, injector, watchdogs_done

AGENT_ID = "the-host"


@dataclass
class Handovers:
    """Orders of owners that were accepted, orders of former owners that were refused, and whatever else happened."""

    accepted: int = 0
    refused: int = 0
    wrong: tuple[str, ...] = ()


async def hand_over(url: str, folder: Path, times: int, restart_every: int, seed: int) -> Handovers:
    """Hand the host over so often; the injector dies after about every `restart_every`-th time."""
    chance, found = random.Random(seed), Handovers()
    with _controller(url, folder) as one, _controller(url, folder) as other:
        owner, rival = one, other
        _ask(owner, "take")
        left = times
        while left:
            turns = min(left, chance.randint(1, 2 * restart_every))
            async with AsyncExitStack() as stack:
                process = await stack.enter_async_context(injector(folder))
                client = await connect(folder)
                client.send(attach=injector_pb2.Attach(agent_version="test", agent_id=AGENT_ID))
                for _ in range(turns):
                    await _once(client, owner, rival, found)
                    owner, rival = rival, owner
                client.writer.close()
                process.kill()
            left -= turns
    await watchdogs_done(folder)
    return found


async def _once(
    client: Client, owner: "subprocess.Popen[str]", rival: "subprocess.Popen[str]", found: Handovers
) -> None:
    owner.send_signal(signal.SIGSTOP)
    late = _send(owner, f"order {uuid.uuid4()}")
    _ask(rival, "take")
    fresh = fault_pb2.Inject.FromString(bytes.fromhex(_ask(rival, f"order {uuid.uuid4()}")))
    if (reply := await _shown(client, fresh)).outcome == ACCEPTED:
        found.accepted += 1
    else:
        found.wrong += (f"the owner's order of epoch {fresh.epoch} was refused: {reply.reason}",)
    client.send(stop=fault_pb2.Stop(fault_id=fresh.fault_id))
    await client.reply()
    late.send_signal(signal.SIGCONT)
    stale = fault_pb2.Inject.FromString(bytes.fromhex(_answer(late)))
    reply = await _shown(client, stale)
    if reply.outcome == REFUSED and "epoch" in reply.reason:
        found.refused += 1
    else:
        found.wrong += (f"a former owner's order of epoch {stale.epoch} got {reply}",)


async def _shown(client: Client, order: fault_pb2.Inject) -> fault_pb2.OrderReply:
    client.send(inject=order)
    reply = await client.reply()
    assert reply.fault_id == order.fault_id
    return reply


@contextmanager
def _controller(url: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    argv = [sys.executable, "-m", "tests.support.owner_controller", url, str(folder), AGENT_ID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(process: "subprocess.Popen[str]", command: str) -> str:
    return _answer(_send(process, command))


def _send(process: "subprocess.Popen[str]", command: str) -> "subprocess.Popen[str]":
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    return process


def _answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
