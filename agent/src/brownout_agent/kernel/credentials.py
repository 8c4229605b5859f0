"""Who a process is, and the way down from root to a user without any right, for good (credentials(7))."""

import ctypes
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.kernel import limits

STRESS_USER = "brownout-stress"
"""Made by deploy/sysusers.d. Nothing else runs as this user and nothing belongs to it."""
SUBSTITUTE = "nobody"
_PR_SET_NO_NEW_PRIVS = 38
_UID_MAP = Path("/proc/self/uid_map")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class User:
    """One of this host's users, with its own group."""

    name: str
    uid: int
    gid: int


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect; `number` as in linux/capability.h."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(effective >> number & 1)


def stress_user() -> User | None:
    """Whom stressors run as; None where this process cannot become anybody else: it is not root, or root of a user
    namespace that has nobody else.

    Raises:
        OSError: this host has neither user.
    """
    if os.geteuid() != 0:
        return None
    for name in (STRESS_USER, SUBSTITUTE):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(name, entry.pw_uid, entry.pw_gid) if _is_mapped(entry.pw_uid, _UID_MAP.read_text()) else None
    raise OSError(f"this host has no user {STRESS_USER} and no {SUBSTITUTE}; next: systemd-sysusers")


def _is_mapped(uid: int, uid_map: str) -> bool:
    """Whether a /proc/self/uid_map text has this user (user_namespaces(7)). Pure."""
    ranges = ((int(first), int(length)) for first, _, length in (line.split() for line in uid_map.splitlines()))
    return any(first <= uid < first + length for first, length in ranges)


def give_up_root(parent_pid: int) -> None:
    """Become the stress user, without groups and capabilities, and for good: no set-user-id program helps either.

    Where there is none to become, nothing happens. The kernel forgets PR_SET_PDEATHSIG over a change of user
    (prctl(2)), so it is asked once more; timers stay. `parent_pid` is whose death is to be this process's own. Nobody
    else can say it: a parent that has given up root already may not signal us while we have not, so that its death
    would go unnoticed until now.

    Raises:
        OSError: the kernel refused.
        SystemExit: the parent is dead.
    """
    user = stress_user()
    if user is None:
        return
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    limits.die_with_parent(parent_pid)
