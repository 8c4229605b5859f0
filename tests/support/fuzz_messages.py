"""Hostile inputs for a protocol of protobuf messages, from one random generator. Pure: the same seed, the same inputs.

Structure-aware: a message is made by its descriptor with values from the edges of what fields can hold; then, now and
then, its wire form is broken as well, by flipped bits, repeated and unknown fields, lengths that lie.
"""

import random
import struct
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

TEXTS = (
    "", " ", "\0", "\n", "../../etc/passwd", "a" * 101, "é" * 50, "\u202egnp", "🔥", "$(reboot)", "; reboot", "%s%n",
    "nan", "1e400", "-1", "0", "512MiB", "5s", "10%", "staging", "/", "/proc/self/mem", "{}", "[]", "x" * 5_000,
    "\x1b[2J", "<script>", "=1+1", "ﷺ" * 300, "\ud7ff", "own", "lo", "0.0.0.0/0", "127.0.0.1", "::/0", ".*", "(a+)+$",
)  # fmt: skip
INTEGERS = (0, 1, 2, 7, 50, 100, 1_000, 30_000, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64 - 1)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 50.0, 100.0, 100.1, 5e-324, 1.7e308, float("inf"), float("-inf"), float("nan"))
_BITS = {
    FieldDescriptor.TYPE_UINT32: (0, 32),
    FieldDescriptor.TYPE_UINT64: (0, 64),
    FieldDescriptor.TYPE_SINT64: (63, 63),
    FieldDescriptor.TYPE_INT64: (63, 63),
    FieldDescriptor.TYPE_INT32: (31, 31),
}
_REPEATS = (0, 1, 2, 3, 40)


def any_text(rng: random.Random) -> str:
    """From a list of what breaks things, or random code points."""
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    codes = (rng.randrange(0xD800) if rng.random() < 0.8 else rng.randrange(0xE000, 0x110000) for _ in range(12))
    return "".join(map(chr, codes))


def fill(message: Message, rng: random.Random, depth: int = 3) -> Message:
    """Set about half of a message's fields, and one body of each oneof, to odd values, in place."""
    for field in _chosen(message.DESCRIPTOR, rng):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field.message_type.fields_by_name["value"], rng, depth)
        elif field.is_repeated:
            _fill_repeated(getattr(message, field.name), field, rng, depth)
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            if depth:
                fill(part, rng, depth - 1)
        else:
            setattr(message, field.name, _scalar(field, rng))
    return message


def _chosen(descriptor: Descriptor, rng: random.Random) -> list[FieldDescriptor]:
    chosen = [field for field in descriptor.fields if field.containing_oneof is None and rng.random() < 0.6]
    return chosen + [rng.choice(oneof.fields) for oneof in descriptor.oneofs if rng.random() < 0.98]


def _fill_map(values: Any, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    for _ in range(rng.choice(_REPEATS)):
        if field.message_type is None:
            values[any_text(rng)] = _scalar(field, rng)
        else:
            fill(values[any_text(rng)], rng, depth - 1)


def _fill_repeated(values: Any, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    for _ in range(rng.choice(_REPEATS)):
        if field.message_type is None:
            values.append(_scalar(field, rng))
        else:
            fill(values.add(), rng, depth - 1)


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return any_text(rng)
        case FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 100)))
        case FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.TYPE_DOUBLE:
            return rng.choice(NUMBERS)
        case FieldDescriptor.TYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 99, -1, 2**31 - 1))
        case _:
            down, up = _BITS[field.type]
            number = rng.choice(INTEGERS)
            return max(-(2**down), -number) if down and rng.random() < 0.5 else min(number, 2**up - 1)


def break_wire(body: bytes, rng: random.Random) -> bytes:
    """The bytes of a message, damaged in one of the ways in which wires and attackers damage them."""
    at = rng.randrange(len(body) + 1)
    match rng.randrange(7):
        case 0:  # a flipped bit
            return body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :] if at < len(body) else body
        case 1:  # cut off
            return body[:at]
        case 2:  # something in the midst
            return body[:at] + rng.randbytes(rng.randrange(1, 9)) + body[at:]
        case 3:  # everything twice: the last of a field counts, the others must not
            return body + body
        case 4:  # a field that nobody knows
            return body + _varint(rng.randrange(1, 2**29) << 3) + _varint(rng.randrange(2**64))
        case 5:  # groups, nested deeper than any parser goes
            return body + b"\x0b" * rng.choice((1, 99, 101, 5_000))
        case _:  # a length that lies
            return body + _varint(rng.randrange(1, 9) << 3 | 2) + _varint(rng.choice((2**31, 2**63, 200)))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def parses(kind: type[Message], body: bytes) -> bool:
    """Whether these bytes are a message of that kind with a body in its oneof."""
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return False
    return message.WhichOneof("body") is not None


def broken_frame(rng: random.Random) -> bytes:
    """What is no frame: a length that is absurd or lies, or noise."""
    match rng.randrange(4):
        case 0:
            return struct.pack(">I", rng.choice((256 * 1024 + 1, 2**31, 2**32 - 1))) + rng.randbytes(20)
        case 1:
            return struct.pack(">I", 200) + rng.randbytes(rng.randrange(200))  # and then the end
        case 2:
            return rng.randbytes(rng.randrange(1, 300))
        case _:
            return b"GET / HTTP/1.1\r\nHost: injector\r\n\r\n"
