"""Every permission, every role, and the one table that joins them. `docs/api.md` is generated from here."""

from enum import Enum, StrEnum
from typing import NamedTuple


class Over(StrEnum):
    """What a permission is asked for."""

    PLACE = "environment and hosts"
    """An environment and hosts: a grant must cover all of them."""
    SYSTEM = "the whole system"
    """Something that belongs to no environment: only a grant without limits gives it."""
    ANYTHING = "anything"
    """Whoever has it in any grant has it."""


class _Meaning(NamedTuple):
    word: str
    over: Over
    text: str


class Permission(Enum):
    """What can be permitted. `word` is how it is written in the audit log and in messages."""

    SELF_READ = _Meaning("self.read", Over.ANYTHING, "see who one is, and the API's description")
    FAULT_READ = _Meaning("fault.read", Over.ANYTHING, "see which faults there are")
    HOST_READ = _Meaning("host.read", Over.PLACE, "see hosts, their labels and what each can do")
    HOST_ENROL = _Meaning("host.enrol", Over.SYSTEM, "make tokens by which hosts join")
    PLAN_MAKE = _Meaning("plan.make", Over.PLACE, "bring an experiment and have it planned")
    PLAN_READ = _Meaning("plan.read", Over.PLACE, "see plans")
    RUN_READ = _Meaning("run.read", Over.PLACE, "see runs, their events and reports")
    RUN_START = _Meaning("run.start", Over.PLACE, "start a run of a plan that is approved")
    RUN_START_UNAPPROVED = _Meaning(
        "run.start-unapproved", Over.PLACE, "start a run without approval, within the environment's limit"
    )
    RUN_HALT = _Meaning("run.halt", Over.PLACE, "halt a run")
    LEVER_READ = _Meaning("lever.read", Over.ANYTHING, "see whether everything is halted")
    LEVER_PULL = _Meaning("lever.pull", Over.ANYTHING, "halt everything, and keep new runs from starting")
    LEVER_RELEASE = _Meaning("lever.release", Over.SYSTEM, "let runs start again")
    APPROVAL_READ = _Meaning("approval.read", Over.PLACE, "see approvals")
    APPROVAL_GIVE = _Meaning("approval.give", Over.PLACE, "approve a plan of somebody else, and withdraw it")
    LIMIT_READ = _Meaning("limit.read", Over.ANYTHING, "see above which blast radius a run needs approval")
    LIMIT_SET = _Meaning("limit.set", Over.SYSTEM, "set above which blast radius a run needs approval")
    TOKEN_OWN = _Meaning("token.own", Over.ANYTHING, "make, see and revoke one's own API tokens")
    TOKEN_MANAGE = _Meaning("token.manage", Over.SYSTEM, "make, see and revoke everybody's API tokens")
    USER_READ = _Meaning("user.read", Over.SYSTEM, "see users and their roles")
    USER_MANAGE = _Meaning("user.manage", Over.SYSTEM, "add users, change their roles, disable them")
    AUDIT_READ = _Meaning("audit.read", Over.SYSTEM, "read the audit log")

    @property
    def word(self) -> str:
        """As `object.verb`."""
        return self.value.word

    @property
    def over(self) -> Over:
        """What it is asked for."""
        return self.value.over

    @property
    def text(self) -> str:
        """What it lets one do."""
        return self.value.text


STOPPING = frozenset({Permission.RUN_HALT, Permission.LEVER_PULL})
"""These wait for nothing: no database, no audit log."""


class Role(StrEnum):
    """What a grant makes of somebody."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    AUTHOR = "author"
    APPROVER = "approver"
    ADMIN = "admin"
    AUDITOR = "auditor"
    HALTER = "halter"
    """Can only halt: the role of the token behind the glass."""


_P = Permission
_SEE = frozenset({
    _P.SELF_READ, _P.FAULT_READ, _P.HOST_READ, _P.PLAN_READ, _P.RUN_READ, _P.LEVER_READ, _P.APPROVAL_READ,
    _P.LIMIT_READ, _P.TOKEN_OWN,
})  # fmt: skip

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: _SEE,
    Role.OPERATOR: _SEE | STOPPING | {_P.RUN_START},
    Role.AUTHOR: _SEE | STOPPING | {_P.PLAN_MAKE, _P.RUN_START, _P.RUN_START_UNAPPROVED},
    Role.APPROVER: _SEE | STOPPING | {_P.APPROVAL_GIVE, _P.LEVER_RELEASE},
    Role.ADMIN: STOPPING | {
        _P.SELF_READ, _P.FAULT_READ, _P.HOST_READ, _P.HOST_ENROL, _P.LEVER_READ, _P.LEVER_RELEASE, _P.LIMIT_READ,
        _P.LIMIT_SET, _P.TOKEN_OWN, _P.TOKEN_MANAGE, _P.USER_READ, _P.USER_MANAGE,
    },
    Role.AUDITOR: _SEE | {_P.USER_READ, _P.AUDIT_READ},
    Role.HALTER: STOPPING | {_P.SELF_READ, _P.LEVER_READ},
}  # fmt: skip
"""The table. A role that is not named beside a permission does not have it."""


def roles_with(permission: Permission) -> tuple[Role, ...]:
    """The roles that have it, in order."""
    return tuple(role for role in Role if permission in PERMISSIONS[role])
