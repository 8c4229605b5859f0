"""Whether an order is taken on, before anything of it is recorded or touched."""

import asyncio
import logging
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Fault, FaultParameters, Host, Refusal
from brownout_agent.injector.policy import DURATION_CEILING_S, Policy
from brownout_agent.injector.threads import in_thread

PREPARE_TIMEOUT_S = 5.0
LEASE_CEILING_S = 300.0
_FAULT_ID = re.compile(r"[0-9A-Za-z._:-]{1,100}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What an Inject asks for, after the wire and before any check."""

    fault_id: str
    run_id: str
    environment: str
    kind: str
    parameters: dict[str, Any]
    duration_s: float
    lease_s: float


def check_id(fault_id: str) -> None:
    """Let an id pass that can stand in a command line and in a journal of limited size.

    Raises:
        Refusal: it is none.
    """
    if not _FAULT_ID.fullmatch(fault_id):
        raise Refusal(f"{fault_id[:100]!r} is no id of a fault; it has 1 to 100 letters, digits or any of . _ : -")


def check_order(order: Order, policy: Policy, running: int) -> tuple[Fault[Any], FaultParameters]:
    """The fault that an order names and its parameters, where limits and policy let it pass beside `running` others.

    Raises:
        Refusal: they do not.
    """
    fault = catalogue().get(order.kind)
    if fault is None:
        raise Refusal(f"this host knows no fault `{order.kind}`; it knows {', '.join(catalogue())}")
    if not 0 < order.duration_s <= DURATION_CEILING_S:
        raise Refusal(f"a duration of {order.duration_s:g} s; the limits are 0 and {DURATION_CEILING_S:g} s")
    if not 0 < order.lease_s <= LEASE_CEILING_S:
        raise Refusal(f"a lease of {order.lease_s:g} s; the limits are 0 and {LEASE_CEILING_S:g} s")
    try:
        parameters = fault.Parameters.model_validate(order.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Refusal(f"{order.kind}: parameter {name}: {first['msg']}") from error
    policy.check(order.kind, parameters, order.duration_s, order.environment, running)
    return fault, parameters


async def prepare(fault: Fault[Any], parameters: FaultParameters, host: Host) -> Facts:
    """What the fault finds on this host, within PREPARE_TIMEOUT_S.

    Raises:
        Refusal: unsafe, impossible, too slow, or a mistake of the fault's own; nothing was touched.
    """
    looking = in_thread(partial(fault.prepare, parameters, host))  # names are resolved there
    try:
        async with asyncio.timeout(PREPARE_TIMEOUT_S):
            return await asyncio.wrap_future(looking)
    except Refusal:
        raise
    except TimeoutError:
        raise Refusal(f"{fault.kind} was still looking at this host after {PREPARE_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise Refusal(f"{fault.kind} could not look at this host: {error}") from error
    except Exception as error:
        log.exception("%s: prepare failed", fault.kind)
        raise Refusal(f"{fault.kind} has a mistake: {type(error).__name__}: {error}") from error
