"""An interface of a host that faults may take down: a cable whose other end is there too, addresses and routes."""

import fcntl
import socket
import struct

STANDBY, FAR_END = "standby0", "standby1"
COMMANDS = (
    f"link add {STANDBY} type veth peer name {FAR_END}",
    # No link-local addresses: the kernel looks for their duplicates for a second or two whenever they come up.
    f"link set {STANDBY} addrgenmode none",
    f"link set {FAR_END} addrgenmode none",
    f"link set {STANDBY} up",
    f"link set {FAR_END} up",
    f"address add 192.0.2.1/24 dev {STANDBY}",
    f"address add 2001:db8::1/64 dev {STANDBY} nodad",
    f"address add 2001:db8::2/64 dev {STANDBY} nodad",
    f"route add 198.51.100.0/24 via 192.0.2.254 dev {STANDBY} table 77 metric 5",
    f"-6 route add 2001:db8:1::/48 via 2001:db8::fe dev {STANDBY} src 2001:db8::1",
    f"neighbour add 192.0.2.254 lladdr 02:00:00:00:00:fe dev {STANDBY} nud permanent",
)
"""Each the words of one `ip`, to be run where it is to be."""
FEW_PORTS = ("sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 33767")
"""For a host whose local ports a fault uses up: each takes memory of the machine's kernel."""
LOOKS = (
    f"link show dev {STANDBY}",
    f"address show dev {STANDBY}",
    f"-4 route show table all dev {STANDBY}",
    f"-6 route show table all dev {STANDBY}",
    f"neighbour show dev {STANDBY} nud permanent",
)
"""What `ip` says of it: the same before and after."""
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1


def is_down(interface: str, asking: socket.socket) -> bool:
    """Whether it is down, in the network that the socket was opened in."""
    answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16sH14x", interface.encode(), 0))
    return not struct.unpack_from("16sH", answer)[1] & _IFF_UP
