"""Everything that routes work with."""

from dataclasses import dataclass, field

from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.access.token_form import Token, new_token
from brownout_controller.audit.entry import Auditor
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.running.manager import RunManager
from brownout_controller.serving import Controller
from brownout_controller.store.access import AccessStore, UserExists, token_row
from brownout_controller.store.approvals import ApprovalStore
from brownout_controller.store.levers import Levers
from brownout_controller.store.requests import RequestStore
from brownout_controller.store.run_access import RunAccess
from brownout_controller.store.store import Store

FIRST_USER = "admin"
FIRST_TOKEN_TTL_S = 24 * 3600
"""Time enough to make users; `brownout server admin-token` prints another one on the controller itself."""


@dataclass(slots=True)
class Services:
    """One controller, as its API sees it."""

    controller: Controller
    runs: RunManager
    audit: Auditor
    access: AccessStore = field(init=False)
    approvals: ApprovalStore = field(init=False)
    requests: RequestStore = field(init=False)
    run_access: RunAccess = field(init=False)
    levers: Levers = field(init=False)

    def __post_init__(self) -> None:
        self.access = AccessStore(self.store.database)
        self.approvals = ApprovalStore(self.store.database)
        self.requests = RequestStore(self.store.database)
        self.run_access = RunAccess(self.store.database)
        self.levers = Levers(self.store.database)

    @property
    def fleet(self) -> Fleet:
        """The hosts."""
        return self.controller.fleet

    @property
    def store(self) -> Store:
        """The runs that are kept."""
        return self.controller.store


def first_admin(access: AccessStore) -> Token | None:
    """A token for the user `admin`, who is made with it; None where there are users already."""
    if access.users():
        return None
    try:
        access.add_user(FIRST_USER, [Grant(Role.ADMIN)])
    except UserExists:  # another controller was first
        return None
    return admin_token(access)


def admin_token(access: AccessStore) -> Token:
    """A fresh token for the user `admin`: for whoever is root on the controller, and so may do anything anyway."""
    token = new_token()
    access.add_token(token_row(token, FIRST_USER, "local", FIRST_TOKEN_TTL_S, "first steps"))
    return token
