"""NFQUEUE over netlink: packets that an nftables rule hands to a process, which lets them pass when it likes.

The kernel keeps the packets; what is read here is a number for each. When the queue's socket closes, the kernel drops
what it keeps and, where the rule says `bypass`, lets every later packet pass (linux/netfilter/nfnetlink_queue.h).
"""

import errno
import random
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE = 33
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_SUBSYSTEM = 3 << 8
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM | message for message in range(4))
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = range(1, 6)
_BIND = 1
_COPY_META, _COPY_PACKET = 1, 2
_FAIL_OPEN, _GSO = 1, 4
_PACKET_HDR, _VERDICT_HDR, _MARK, _PAYLOAD = 1, 2, 3, 10
_DROP, _ACCEPT = 0, 1
_HEADER = struct.Struct("=IHHIIBBxx")
"""struct nlmsghdr and struct nfgenmsg; the queue's number, in network order, is in the two last bytes."""
_ATTRIBUTE = struct.Struct("=HH")
_PACKET_HEAD = struct.Struct(">IHB")
"""struct nfqnl_msg_packet_hdr, which is the first attribute of every packet: its number, protocol and hook."""
_LOCAL_OUT = 3
_PACKET_AT = _HEADER.size + _ATTRIBUTE.size
_NUMBER_MASK = 2**32 - 1
_AHEAD = 2**30
"""The kernel compares numbers as a difference of 32 bits with a sign."""
_RECEIVE_BYTES = 4_096
_BUFFER_BYTES = 8 * 2**20
_NUMBERS = range(20_000, 60_000)
"""Administrators count from 0; what others draw at random may be anywhere."""
_TRIES = 20
_ANSWER_WITHIN_S = 5.0
LARGEST_BYTES = 65_531
"""A netlink attribute holds no more of a packet (NFQNL_MAX_COPY_RANGE)."""
LONGEST = 65_536
"""More packets than this no queue keeps, whatever is asked of it; each may be as large as 64 KiB."""


class Packet(NamedTuple):
    """One packet that the kernel keeps: its number in the queue, how it begins, from the IP header on, and whether it
    leaves this host.
    """

    number: int
    start: bytes
    leaves: bool


class PacketQueue:
    """One queue of the calling thread's network namespace. What does not fit in passes (NFQA_CFG_F_FAIL_OPEN).

    The object is for one thread.
    """

    def __init__(self, length: int, start_bytes: int, *, is_whole: bool = True) -> None:
        """`length`: how many packets it keeps at most. `start_bytes`: how much of each packet is read, 0 for nothing.
        `is_whole`: bursts of segmentation offload come as one packet, with checksums that the network card will make;
        else the kernel takes them to pieces and makes the checksums.

        Raises:
            OSError: the kernel has no such queues, or gives us none.
        """
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.settimeout(_ANSWER_WITHIN_S)
            self.number = self._bind()
            copy = struct.pack(">IB", start_bytes, _COPY_PACKET if start_bytes else _COPY_META)
            flags = struct.pack(">I", _FAIL_OPEN | (_GSO if is_whole else 0))
            self._configure(
                self.number,
                _attribute(_CFG_PARAMS, copy)
                + _attribute(_CFG_QUEUE_MAXLEN, struct.pack(">I", min(length, LONGEST)))
                + _attribute(_CFG_FLAGS, flags)
                + _attribute(_CFG_MASK, struct.pack(">I", _FAIL_OPEN | _GSO)),
            )
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._buffer = bytearray(start_bytes + _RECEIVE_BYTES)
        self._last = 0
        self._has_start = start_bytes > 0

    def __enter__(self) -> "PacketQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def accept_all(self) -> None:
        """Let everything that the queue keeps now go on its way, read or not."""
        self.accept_up_to(self._last + _AHEAD & _NUMBER_MASK)

    def fileno(self) -> int:
        """Readable when packets have come."""
        return self._socket.fileno()

    def receive(self) -> Packet | None:
        """The next packet that has come; None when there is none.

        Raises:
            OSError: the kernel refused a verdict, for another reason than that it keeps no such packet any more.
        """
        while True:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return None
            (_, kind, _, _, _, _, _) = _HEADER.unpack_from(self._buffer)
            if kind == _PACKET:
                number, _, hook = _PACKET_HEAD.unpack_from(self._buffer, _PACKET_AT)
                self._last = number
                return Packet(number, self._payload(size) if self._has_start else b"", hook == _LOCAL_OUT)
            if kind == _NLMSG_ERROR and (number := _error_of(self._buffer)) not in {0, errno.ENOENT}:
                raise OSError(number, "the kernel took no verdict")

    def accept(self, numbers: Iterable[int]) -> None:
        """Let these packets go on their way; of those that the kernel has dropped meanwhile it says so (`receive`)."""
        for number in numbers:
            verdict = _attribute(_VERDICT_HDR, struct.pack(">II", _ACCEPT, number))
            self._socket.send(_message(_VERDICT, self.number, verdict))

    def accept_up_to(self, number: int) -> None:
        """Let this packet and all that came before it go on their way."""
        verdict = _attribute(_VERDICT_HDR, struct.pack(">II", _ACCEPT, number))
        self._socket.send(_message(_VERDICT_BATCH, self.number, verdict))

    def replace(self, number: int, packet: bytes, mark: int | None = None) -> None:
        """Let another packet go in the place of this one, from its IP header on and with all checksums.

        In the output hook the kernel routes it anew when its addresses are others: one for this host is delivered here.
        """
        attributes = _attribute(_VERDICT_HDR, struct.pack(">II", _ACCEPT, number))
        if mark is not None:
            attributes += _attribute(_MARK, struct.pack(">I", mark))
        attributes += _attribute(_PAYLOAD, packet)
        self._socket.send(_message(_VERDICT, self.number, attributes))

    def drop(self, number: int) -> None:
        """Let this packet vanish; its sender is not told."""
        verdict = _attribute(_VERDICT_HDR, struct.pack(">II", _DROP, number))
        self._socket.send(_message(_VERDICT, self.number, verdict))

    def _bind(self) -> int:
        for _ in range(_TRIES):
            number = random.choice(_NUMBERS)  # noqa: S311 - that others have not taken it, the kernel says
            try:
                self._configure(number, _attribute(_CFG_CMD, struct.pack(">BxH", _BIND, 0)))
            except OSError as error:
                # EPERM is also said of a queue that is somebody else's; without rights it is said again.
                if error.errno not in {errno.EBUSY, errno.EPERM}:
                    raise
                refused = error
            else:
                return number
        raise refused

    def _configure(self, number: int, attributes: bytes) -> None:
        self._socket.send(_message(_CONFIG, number, attributes, _NLM_F_REQUEST | _NLM_F_ACK))
        while True:
            answer = self._socket.recv(_RECEIVE_BYTES)
            if _HEADER.unpack_from(answer.ljust(_HEADER.size, b"\0"))[1] == _NLMSG_ERROR:
                break
        if code := _error_of(answer):
            raise OSError(code, f"no packet queue to be had (nfnetlink_queue): {errno.errorcode.get(code, code)}")

    def _payload(self, size: int) -> bytes:
        at = _HEADER.size
        while at + _ATTRIBUTE.size <= size:
            length, kind = _ATTRIBUTE.unpack_from(self._buffer, at)
            if kind == _PAYLOAD:
                return bytes(self._buffer[at + _ATTRIBUTE.size : at + length])
            at += (length + 3) & ~3
        return b""


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _message(kind: int, queue: int, attributes: bytes, flags: int = _NLM_F_REQUEST) -> bytes:
    header = bytearray(_HEADER.pack(_HEADER.size + len(attributes), kind, flags, 0, 0, socket.AF_UNSPEC, 0))
    struct.pack_into(">H", header, _HEADER.size - 2, queue)
    return bytes(header) + attributes


def _error_of(message: bytes | bytearray) -> int:
    """The errno of an NLMSG_ERROR, 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", message, 16)[0])
