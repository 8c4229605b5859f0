"""Everything that routes work with."""

from dataclasses import dataclass, field

from brownout_controller.access.guessing import Guesses
from brownout_controller.api.oidc import Provider
from brownout_controller.audit.entry import Auditor
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.running.manager import RunManager
from brownout_controller.serving import Controller
from brownout_controller.store.access import AccessStore
from brownout_controller.store.approvals import ApprovalStore
from brownout_controller.store.levers import Levers
from brownout_controller.store.logins import LoginStore
from brownout_controller.store.requests import RequestStore
from brownout_controller.store.run_access import RunAccess
from brownout_controller.store.store import Store


@dataclass(slots=True)
class Services:
    """One controller, as its API sees it."""

    controller: Controller
    runs: RunManager
    audit: Auditor
    provider: Provider | None = None
    """Of people's logins; without one they come by tokens."""
    access: AccessStore = field(init=False)
    approvals: ApprovalStore = field(init=False)
    requests: RequestStore = field(init=False)
    run_access: RunAccess = field(init=False)
    levers: Levers = field(init=False)
    logins: LoginStore = field(init=False)
    login_guesses: Guesses = field(init=False, default_factory=Guesses)
    login_begins: Guesses = field(init=False, default_factory=Guesses)
    """Apart from the others: whoever begins too many hinders nobody at the same address who is on the way back."""

    def __post_init__(self) -> None:
        self.access = AccessStore(self.store.database)
        self.approvals = ApprovalStore(self.store.database)
        self.requests = RequestStore(self.store.database)
        self.run_access = RunAccess(self.store.database)
        self.levers = Levers(self.store.database)
        self.logins = LoginStore(self.store.database)

    @property
    def fleet(self) -> Fleet:
        """The hosts."""
        return self.controller.fleet

    @property
    def store(self) -> Store:
        """The runs that are kept."""
        return self.controller.store
