"""Names in network faults, in a process that may open no IP socket as in the injector's unit, and in one that may."""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the number of socket(2) on x86-64 only")

LOOK_UP = """
import ctypes, json, struct, sys
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.network_scope import NetworkParameters, resolve

def forbid_ip_sockets():
    # What RestrictAddressFamilies= without AF_INET and AF_INET6 compiles to: EAFNOSUPPORT from socket(2).
    rules = [(0x20, 0, 0, 0), (0x15, 0, 3, 41), (0x20, 0, 0, 16), (0x15, 2, 0, 2), (0x15, 1, 0, 10),
             (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 97)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    for option, value, more in ((38, 1, None), (22, 2, ctypes.addressof(head))):  # no new privileges; seccomp filter
        if libc.prctl(option, value, more, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")

if sys.argv[1] == "confined":
    forbid_ip_sockets()
told = []
for name in ("localhost", "no-such-host.invalid"):
    try:
        told.append(resolve(NetworkParameters(to=[name]), Host())["networks"])
    except Refusal as refusal:
        told.append([refusal.reason, refusal.remedy])
print(json.dumps(told))
"""


def look_up(how: str) -> tuple[list[str], list[str]]:
    ran = subprocess.run([sys.executable, "-c", LOOK_UP, how], check=True, capture_output=True, timeout=120)
    known, unknown = json.loads(ran.stdout)
    return known, unknown


def test_what_dns_alone_knows_is_refused_with_what_helps_there_and_etc_hosts_is_read() -> None:
    known, (reason, remedy) = look_up("confined")
    assert "127.0.0.1/32" in known
    assert "cannot resolve no-such-host.invalid" in reason
    assert "name it by its address, or in /etc/hosts: this injector has no network" in remedy


def test_where_there_is_a_network_a_look_at_the_host_helps() -> None:
    known, (reason, remedy) = look_up("free")
    assert "127.0.0.1/32" in known
    assert "cannot resolve no-such-host.invalid" in reason
    assert remedy == "check `getent hosts no-such-host.invalid` on this host"
