"""Frames of the unix socket between agent and injector: a 4-byte big-endian length, then one message."""

import asyncio
import struct
from collections.abc import Mapping
from typing import Any, TypeVar

from brownout_protos.v1.fault_pb2 import TextList, Value
from google.protobuf.message import DecodeError, Message

FRAME_BYTES_MAX = 256 * 1024
_LENGTH = struct.Struct(">I")

M = TypeVar("M", bound=Message)


class BadFrame(Exception):
    """The peer sent something that is no frame of ours; the connection is of no more use."""


async def read_frame(reader: asyncio.StreamReader, kind: type[M]) -> M | None:
    """The next message, or None when the peer is gone.

    Raises:
        BadFrame: too long, or not a message of this kind.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > FRAME_BYTES_MAX:
            raise BadFrame(f"a frame of {length} bytes; the limit is {FRAME_BYTES_MAX}")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise BadFrame(f"not a {kind.__name__}: {error}") from error
    return message


def frame(message: Message) -> bytes:
    """The bytes of one frame."""
    body = message.SerializeToString()
    return _LENGTH.pack(len(body)) + body


def to_value(plain: Any) -> Value:
    """A flat plain value as it crosses the wire.

    Raises:
        ValueError: nested or of an unknown type.
    """
    match plain:
        case bool():
            return Value(flag=plain)
        case int():
            return Value(integer=plain)
        case float():
            return Value(number=plain)
        case str():
            return Value(text=plain)
        case list() | tuple():
            return Value(texts=TextList(items=[str(item) for item in plain]))
        case _:
            raise ValueError(f"{plain!r} cannot cross the wire: only text, numbers, flags and lists of text can")


def from_values(values: Mapping[str, Value]) -> dict[str, Any]:
    """Parameters as plain values again; an empty Value is dropped."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        match value.WhichOneof("kind"):
            case "texts":
                plain[name] = list(value.texts.items)
            case None:
                continue
            case chosen:
                plain[name] = getattr(value, chosen)
    return plain
