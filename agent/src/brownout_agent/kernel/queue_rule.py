"""The rule that hands packets to a queue and, when nobody listens there, lets them pass: nft's `queue ... bypass`.

A kernel without nft's own statement (CONFIG_NFT_QUEUE) mostly has the older target NFQUEUE, which its tables take as
well (CONFIG_NFT_COMPAT, as iptables-nft uses it). libnftables shows such a rule as it shows its own, but cannot make
one, so that it is sent here, over the library's own socket: nobody else may change a table that it owns.
"""

import os
import socket
import struct

from brownout_agent.kernel.nftables import Nftables, NftablesError

# linux/netfilter/nfnetlink.h, nf_tables.h, nf_tables_compat.h, xt_NFQUEUE.h
_BATCH_BEGIN, _BATCH_END, _NEW_RULE = 0x10, 0x11, 10 << 8 | 6
_NFT_SUBSYSTEM = 10
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_LIST_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_TARGET_NAME, _TARGET_REVISION, _TARGET_INFO = 1, 2, 3
_NESTED = 0x8000
_REVISION = 3
_BYPASS = 1
_NFPROTO_INET = 1
_NLMSG_ERROR = 2
_ANSWER_BYTES = 8_192


def append_queue_rule(nft: Nftables, table: str, chain: str, queue: int) -> None:
    """Append the rule to a chain of an `inet` table of this connection, which was made with its descriptor.

    Raises:
        NftablesError: the kernel takes neither form of it.
    """
    try:
        nft.run(f"add rule inet {table} {chain} queue num {queue} bypass")
    except NftablesError as refused:
        code = _send(nft.descriptor, _new_rule(table, chain, queue))
        if code:
            raise NftablesError(f"{refused}; and target NFQUEUE: {os.strerror(code)}") from refused


def _send(descriptor: int, rule: bytes) -> int:
    """Send a transaction of this one rule; returns the kernel's errno, 0 when it was taken."""
    begin, end = (_message(kind, _REQUEST, 0, _NFT_SUBSYSTEM, b"") for kind in (_BATCH_BEGIN, _BATCH_END))
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.send(begin + rule + end)
        while True:
            # It is there when send(2) returns. No time-out: that would make the library's socket non-blocking as well.
            answer = connection.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            kind, number = struct.unpack_from("=4xH10xi", answer)
            if kind == _NLMSG_ERROR:
                return -int(number)


def _new_rule(table: str, chain: str, queue: int) -> bytes:
    info = struct.pack("=HHHxx", queue, 1, _BYPASS)  # one queue
    target = (
        _attribute(_TARGET_NAME, b"NFQUEUE\0")
        + _attribute(_TARGET_REVISION, struct.pack(">I", _REVISION))
        + _attribute(_TARGET_INFO, info)
    )
    expression = _attribute(_EXPRESSION_NAME, b"target\0") + _attribute(_EXPRESSION_DATA | _NESTED, target)
    attributes = (
        _attribute(_RULE_TABLE, table.encode() + b"\0")
        + _attribute(_RULE_CHAIN, chain.encode() + b"\0")
        + _attribute(_RULE_EXPRESSIONS | _NESTED, _attribute(_LIST_ELEMENT | _NESTED, expression))
    )
    return _message(_NEW_RULE, _REQUEST | _ACK | _CREATE | _APPEND, _NFPROTO_INET, 0, attributes)


def _message(kind: int, flags: int, family: int, resource: int, attributes: bytes) -> bytes:
    header = struct.pack("=IHHIIBB", 20 + len(attributes), kind, flags, 0, 0, family, 0)
    return header + struct.pack(">H", resource) + attributes


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
