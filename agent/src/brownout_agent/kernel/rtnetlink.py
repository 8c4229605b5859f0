"""Interfaces and queueing disciplines of the calling thread's network namespace, by rtnetlink(7). Reads only.

pyroute2 is imported where it is used: it takes a quarter of a second and 27 MiB, which the watchdog is spared.
"""

import json
from typing import Any

_COUNTERS = frozenset({"direct_pkts"})
"""What the kernel counts among the options of a discipline (htb)."""
_UP = 0x1
_LOWER_UP = 0x10000


def read_interfaces() -> list[str]:
    """One line an interface: name, state, MTU, address of the link and its root discipline.

    Raises:
        OSError: no netlink socket, or the kernel refused.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - see above

    with IPRoute() as route:
        return [_interface_line(link) for link in route.get_links()]


def read_qdiscs() -> list[str]:
    """One line a discipline that somebody has set: interface, kind, handle, parent, options.

    The kernel's own defaults have no handle (tc(8): `0:`) and come and go with their interfaces: not these.

    Raises:
        OSError: no netlink socket, or the kernel refused.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - see above

    with IPRoute() as route:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
        return [_qdisc_line(names, one) for one in route.get_qdiscs() if one["handle"] >> 16]


def _interface_line(link: Any) -> str:
    up = "up" if link["flags"] & _UP else "down"
    carrier = "carrier" if link["flags"] & _LOWER_UP else "no-carrier"
    mtu, address, qdisc = (link.get_attr(f"IFLA_{name}") for name in ("MTU", "ADDRESS", "QDISC"))
    return f"{link.get_attr('IFLA_IFNAME')} {up} {carrier} mtu {mtu} address {address} qdisc {qdisc}"


def _qdisc_line(names: dict[int, str], one: Any) -> str:
    interface = names.get(one["index"], f"interface {one['index']}")
    options = json.dumps(_options(one.get_attr("TCA_OPTIONS")), default=str, sort_keys=True)
    kind = one.get_attr("TCA_KIND")
    return f"{interface} {kind} {one['handle'] >> 16:x}: parent {_parent(one['parent'])} {options}"


def _parent(number: int) -> str:
    """`root`, `ingress`, or `7:1`, as tc(8) writes it."""
    special = {0xFFFFFFFF: "root", 0xFFFFFFF1: "ingress"}
    return special.get(number) or f"{number >> 16:x}:{number & 0xFFFF:x}"


def _options(plain: Any) -> Any:
    """Decoded options without what counts; None where pyroute2 does not know the kind, and yields but a number."""
    return _without_counters(plain) if isinstance(plain, dict) else None


def _without_counters(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    fields = {name: value for name, value in plain.items() if name != "attrs"} | dict(plain.get("attrs", ()))
    return {name: _without_counters(value) for name, value in fields.items() if name not in _COUNTERS}
