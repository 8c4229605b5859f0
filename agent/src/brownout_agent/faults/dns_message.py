"""DNS on the wire, as little of it as these faults need: a query's one question is read, and an answer to it is made.

Nothing of an answer is ever read, and a query that is let pass is never written anew: its bytes go on as they came. So
a whole DNS library would have nothing to do here but to take longer. Read strictly (RFC 1035, 6891): one question of
class IN, no pointers in it, and behind it nothing but an OPT record. What is signed (TSIG) cannot be answered by us.
"""

import struct
from dataclasses import dataclass

TYPES = {
    "A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "SVCB": 64,
    "HTTPS": 65, "ANY": 255,
}  # fmt: skip
RCODES = {"noerror": 0, "servfail": 2, "nxdomain": 3, "refused": 5}
_HEADER = struct.Struct("!HHHHHH")
_RESPONSE, _TRUNCATED, _RECURSION_AVAILABLE = 0x8000, 0x0200, 0x0080
_ECHOED = 0x0110
"""Recursion desired, checking disabled."""
_OPCODE = 0x7800
_CLASS_IN, _TYPE_OPT = 1, 41
_OPT = struct.Struct("!BHHIH")
"""Root name, type, size of the largest datagram, extended flags, length of the options."""
_DNSSEC_OK = 0x8000
_LABEL_BYTES_MAX, _NAME_BYTES_MAX = 63, 255
_DATAGRAM_BYTES = 512
"""What everybody takes (RFC 1035 4.2.1)."""
_OUR_DATAGRAM_BYTES = 1_232
_NAME_AT = 0xC00C
"""A pointer to the name in the question."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `name` is in lower case and without its last dot; a dot within a label stands as `\\.`."""

    query_id: int
    flags: int
    name: str
    type: int
    question: bytes
    """The question section as it came: some resolvers mix cases and look for that in the answer."""
    datagram_bytes: int
    opt: bytes = b""
    """The OPT record that belongs into the answer; empty when the query had none."""


def read_query(message: bytes) -> Query | None:
    """The question of a query; None when it is anything else, or broken."""
    if len(message) < _HEADER.size:
        return None
    query_id, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if flags & (_RESPONSE | _OPCODE) or (questions, answers, authorities) != (1, 0, 0) or additional > 1:
        return None
    found = _read_name(message, _HEADER.size)
    if found is None or len(message) < found[1] + 4:
        return None
    name, at = found
    kind, category = struct.unpack_from("!HH", message, at)
    question, rest = message[_HEADER.size : at + 4], message[at + 4 :]
    if category != _CLASS_IN or bool(rest) != bool(additional):
        return None
    if not rest:
        return Query(query_id, flags, name, kind, question, _DATAGRAM_BYTES)
    size, dnssec_ok = _read_opt(rest)
    if not size:
        return None
    opt = _OPT.pack(0, _TYPE_OPT, _OUR_DATAGRAM_BYTES, dnssec_ok, 0)
    return Query(query_id, flags, name, kind, question, size, opt)


def read_stream(payload: bytes) -> list[Query] | None:
    """The queries of a TCP segment, each behind its length; None unless it is nothing but whole ones."""
    queries = []
    while payload:
        end = 2 + int.from_bytes(payload[:2])
        query = read_query(payload[2:end]) if len(payload) >= end else None
        if query is None:
            return None
        queries.append(query)
        payload = payload[end:]
    return queries or None


def write_answer(query: Query, rcode: int, addresses: tuple[bytes, ...] = (), *, datagram: bool) -> bytes:
    """The answer to a query: an rcode, and packed addresses that are its own type's.

    Their time to live is 0, so that nobody remembers them beyond the fault. What a `datagram` cannot hold is left out
    and said to be (TC), and a client asks again by TCP.
    """
    records = b"".join(
        struct.pack("!HHHIH", _NAME_AT, query.type, _CLASS_IN, 0, len(address)) + address for address in addresses
    )
    flags = _RESPONSE | _RECURSION_AVAILABLE | query.flags & _ECHOED | rcode
    size = _HEADER.size + len(query.question) + len(records) + len(query.opt)
    if datagram and size > query.datagram_bytes:
        flags, records, addresses = flags | _TRUNCATED, b"", ()
    header = _HEADER.pack(query.query_id, flags, 1, len(addresses), 0, bool(query.opt))
    return header + query.question + records + query.opt


def _read_name(message: bytes, at: int) -> tuple[str, int] | None:
    """(name, where it ends)."""
    labels, begin = [], at
    while at < len(message) and (length := message[at]):
        label = message[at + 1 : at + 1 + length]
        if length > _LABEL_BYTES_MAX or len(label) < length:
            return None
        labels.append(label.lower().decode("latin-1").replace("\\", "\\\\").replace(".", "\\."))
        at += 1 + length
    if at >= len(message) or at + 1 - begin > _NAME_BYTES_MAX:
        return None
    return ".".join(labels), at + 1


def _read_opt(record: bytes) -> tuple[int, int]:
    """(size of the largest datagram, DNSSEC OK) of bytes that are one OPT record; (0, 0) when they are not."""
    if len(record) < _OPT.size:
        return 0, 0
    root, kind, size, extended, length = _OPT.unpack_from(record)
    if root or kind != _TYPE_OPT or extended >> 16 or len(record) != _OPT.size + length:
        return 0, 0
    return max(size, _DATAGRAM_BYTES), extended & _DNSSEC_OK
