"""What an agent says is hostile input: absurd messages are refused, texts made harmless before they are kept."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any

from brownout_agent.agent.addresses import ADDRESSES_MAX
from brownout_agent.epochs import EPOCH_MAX
from brownout_protos.v1 import fault_pb2, fleet_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from brownout_controller.fleet.limits import LABELS, NAME_CHARACTERS, TEXT_CHARACTERS
from brownout_controller.reporting.visible import visible

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_CUT = " [cut off]"
_ENUMS = {
    "state": frozenset(fault_pb2.FaultState.values()),
    "end_cause": frozenset(fault_pb2.EndCause.values()),
    "outcome": frozenset(fault_pb2.OrderReply.Outcome.values()),
}


class Absurd(Exception):
    """A message that no agent of ours would send; the text says which field is wrong."""


def screen(message: fleet_pb2.AgentMessage) -> None:
    """Check a message and make its texts harmless, in place.

    Raises:
        Absurd: an empty body, an unknown enum, a negative stamp, columns that do not fit, or a name that is none.
    """
    body = message.WhichOneof("body")
    if body is None:
        raise Absurd("the message has no body that this version knows")
    for one in _within(message):
        _check_fields(one)
        _clean(one)
    if body == "hello":
        _check_hello(message.hello)
        _check_addresses(message.hello)
    elif body == "addresses":
        _check_addresses(message.addresses)
    elif body == "samples":
        _check_samples(message.samples)


def named_id(message: fleet_pb2.AgentMessage) -> str:
    """The id of the order, observer, halt or fingerprint that a message is about; empty where it is about none."""
    body = message.WhichOneof("body")
    said = getattr(message, body) if body else message
    for field in ("fault_id", "observer_id", "halt_id", "fingerprint_id"):
        if field in said.DESCRIPTOR.fields_by_name:
            return str(getattr(said, field))
    return ""


def _within(message: Message) -> Iterator[Message]:
    """A message and every message in it. Ours nest two deep and cannot recurse."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for one in value.values():
                    yield from _within(one)
        else:
            for one in value if field.is_repeated else (value,):
                yield from _within(one)


def _check_fields(message: Message) -> None:
    for field, value in message.ListFields():
        known = _ENUMS.get(field.name)
        if field.enum_type is not None and known is not None and value not in known:
            raise Absurd(f"{field.full_name}: {value} is no {field.enum_type.name} that this version knows")
        if field.name.endswith("boottime_ns") and any(stamp < 0 for stamp in _each(field, value)):
            raise Absurd(f"{field.full_name}: a negative time")


def _check_hello(hello: fleet_pb2.Hello) -> None:
    if hello.epoch_seen > EPOCH_MAX:
        raise Absurd(f"Hello.epoch_seen: {hello.epoch_seen} is larger than any epoch")
    if not _HOST.fullmatch(hello.host):
        raise Absurd(f"Hello.host: no host name; a-z, 0-9, dots and dashes, at most {NAME_CHARACTERS}")
    if len(hello.labels) > LABELS:
        raise Absurd(f"Hello.labels: {len(hello.labels)} of them; the limit is {LABELS}")
    for key, value in hello.labels.items():
        if not _LABEL.fullmatch(key) or not _LABEL.fullmatch(value):
            raise Absurd("Hello.labels: not a label; letters, digits and ._/-, at most 63")
    kinds = [capability.kind for capability in hello.capabilities]
    if len(set(kinds)) != len(kinds):
        raise Absurd("Hello.capabilities: one kind twice")


def _check_addresses(message: fleet_pb2.Hello | fleet_pb2.HostAddresses) -> None:
    """Other hosts' faults are aimed there: what is no host's own address must not get that far."""
    if len(message.addresses) > ADDRESSES_MAX:
        raise Absurd(f"{message.DESCRIPTOR.name}.addresses: {len(message.addresses)}; the limit is {ADDRESSES_MAX}")
    for text in message.addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise Absurd(f"{message.DESCRIPTOR.name}.addresses: not an address") from None
        if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
            raise Absurd(f"{message.DESCRIPTOR.name}.addresses: {address} is no address by which others reach a host")


def _check_samples(samples: fleet_pb2.ProbeSamples) -> None:
    columns = (samples.sent_boottime_ns, samples.took_us, samples.ok, samples.outcome, samples.identity)
    if len({len(column) for column in columns}) != 1:
        raise Absurd("ProbeSamples: columns of unequal length")
    if max(samples.outcome, default=-1) >= len(samples.outcomes):
        raise Absurd("ProbeSamples.outcome: an index beyond its table")
    if max(samples.identity, default=-1) >= len(samples.identities):
        raise Absurd("ProbeSamples.identity: an index beyond its table")


def _clean(message: Message) -> None:
    for field, value in list(message.ListFields()):
        if field.type != FieldDescriptor.TYPE_STRING:
            continue
        if field.is_repeated:
            cleaned = [_harmless(text) for text in value]
            if cleaned != list(value):
                del value[:]
                value.extend(cleaned)
        elif (harmless := _harmless(value)) != value:
            setattr(message, field.name, harmless)


def _harmless(text: str) -> str:
    if len(text) > TEXT_CHARACTERS:
        text = text[: TEXT_CHARACTERS - len(_CUT)] + _CUT
    return text if text.isprintable() else visible(text)[:TEXT_CHARACTERS]


def _each(field: FieldDescriptor, value: Any) -> Iterable[int]:
    return value if field.is_repeated else (value,)
