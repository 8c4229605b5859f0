"""An order as it came over the wire, read strictly: what this version does not know refuses the whole of it."""

import re
from dataclasses import dataclass
from typing import Any

from brownout_protos.v1 import fault_pb2
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from brownout_agent.faults.contract import Refusal
from brownout_agent.frames import from_values

_FAULT_ID = re.compile(r"[0-9A-Za-z._:-]{1,100}")


@dataclass(frozen=True, slots=True)
class Order:
    """What an Inject asks for, before any check of what that would do."""

    fault_id: str
    run_id: str
    environment: str
    kind: str
    parameters: dict[str, Any]
    duration_s: float
    lease_s: float
    epoch: int = 0
    """Of the controller that gives it: the owner of this host has the largest."""
    agent_id: str = ""
    """Whom it came through."""


def check_id(fault_id: str) -> None:
    """Let an id pass that can stand in a command line and in a journal of limited size.

    Raises:
        Refusal: it is none.
    """
    if not _FAULT_ID.fullmatch(fault_id):
        raise Refusal(f"{fault_id[:100]!r} is no id of a fault; it has 1 to 100 letters, digits or any of . _ : -")


def read_order(inject: fault_pb2.Inject, attached_agent_id: str) -> Order:
    """The order that an Inject carries to the agent that is attached.

    Raises:
        Refusal: it is for another agent, or a newer controller asks in it for more than this version understands.
    """
    if inject.agent_id != attached_agent_id:
        raise Refusal(
            f"the order is for agent `{inject.agent_id[:100]}`; the one that is attached here is `{attached_agent_id}`"
        )
    for message in (inject, *inject.parameters.values()):
        _refuse_unknown(message)
    for name, value in inject.parameters.items():
        if value.WhichOneof("kind") is None:
            raise Refusal(f"the parameter {name[:100]} has no value")
        _refuse_unknown(value.texts)
    return Order(
        fault_id=inject.fault_id,
        run_id=inject.run_id,
        environment=inject.environment,
        kind=inject.kind,
        parameters=from_values(inject.parameters),
        duration_s=inject.duration_ms / 1_000,
        lease_s=inject.lease_ms / 1_000,
        epoch=inject.epoch,
        agent_id=inject.agent_id,
    )


def _refuse_unknown(message: Message) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        what = f"field {unknown[0].field_number} of {message.DESCRIPTOR.name}"
        raise Refusal(f"the order has {what}, which this version does not know", "upgrade Brownout on this host")
