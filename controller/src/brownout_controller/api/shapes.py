"""The bodies of requests: what may stand in them, within which bounds."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.language.selectors import Selector

NAME = r"[a-z0-9]([a-z0-9._@-]{0,61}[a-z0-9])?"
ENVIRONMENT = r"[a-z0-9-]{1,63}"
DAYS_MAX = 90
CHALLENGE = r"[A-Za-z0-9_-]{43}"
"""256 bits in BASE64URL: a PKCE challenge, and any secret that we make ourselves."""

Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=63)]
Environment = Annotated[str, Field(pattern=f"^{ENVIRONMENT}$")]
Environments = Annotated[list[Environment], Field(min_length=1, max_length=50)]
Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Words of a person, on one line."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Experiment = Annotated[str, Field(min_length=1, description="the text of the YAML file, at most 256 KiB")]
Variables = Annotated[dict[Annotated[str, Field(max_length=63)], Annotated[str, Field(max_length=2000)]],
                      Field(max_length=100)]  # fmt: skip


class Body(BaseModel):
    """A body names nothing that is not known here."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewPlan(Body):
    """An experiment to plan; nothing is injected."""

    experiment: Experiment
    variables: Variables = Field(default_factory=dict)
    seed: Seed | None = None


class NewRun(Body):
    """A run: of a plan that was made, or of an experiment."""

    plan: Digest | None = None
    experiment: Experiment | None = None
    variables: Variables = Field(default_factory=dict)
    seed: Seed | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.plan is None) == (self.experiment is None):
            raise ValueError("give either `plan`, the digest of one that was made, or `experiment`, its text")
        if self.plan is not None and (self.variables or self.seed is not None):
            raise ValueError("`variables` and `seed` belong to an experiment; a plan has its own")
        return self


class Reason(Body):
    """Why something is stopped. Stopping asks no question, so it may be left out."""

    reason: Line = ""


class Halt(Reason):
    """A run to halt; the answer may wait until everything of it is undone."""

    wait_s: int = Field(0, ge=0, le=60)


class NewApproval(Body):
    """An approval of a plan."""

    plan: Digest
    ttl_s: int = Field(24 * 3600, ge=60, le=7 * 24 * 3600)


class GrantShape(Body):
    """A role, and where it holds; null is everywhere."""

    role: Annotated[Role, Field(strict=False)]
    environments: Environments | None = None
    hosts: Annotated[str, Field(max_length=500)] | None = None

    @field_validator("role")
    @classmethod
    def _not_for_people(cls, role: Role) -> Role:
        if role is Role.HALTER:
            raise ValueError("`halter` is the role of a token that can only halt, not of a user")
        return role

    @field_validator("hosts")
    @classmethod
    def _a_selector(cls, hosts: str | None) -> str | None:
        if hosts is not None:
            Selector.parse(hosts)
        return hosts

    def grant(self) -> Grant:
        """The value."""
        environments = None if self.environments is None else frozenset(self.environments)
        return Grant(self.role, environments, None if self.hosts is None else Selector.parse(self.hosts))


Grants = Annotated[list[GrantShape], Field(max_length=50)]


class NewUser(Body):
    """A user to add."""

    name: Name
    grants: Grants


class ChangedUser(Body):
    """What a user is to be."""

    grants: Grants
    disabled: bool = False


class NewToken(Body):
    """An API token: for oneself, or by an admin for somebody else; with fewer roles and environments, if given."""

    user: Name | None = None
    purpose: Line = ""
    days: int = Field(30, ge=1, le=DAYS_MAX)
    roles: Annotated[list[Annotated[Role, Field(strict=False)]], Field(min_length=1)] | None = None
    environments: Environments | None = None


class CliCode(Body):
    """What `brownout login` shows for its token: the code that the browser brought, and who it is for."""

    code: Annotated[str, Field(pattern=f"^{CHALLENGE}$")]
    verifier: Annotated[str, Field(pattern="^[A-Za-z0-9._~-]{43,128}$")]


class NewJoinToken(Body):
    """A token by which one host joins."""

    ttl_s: int = Field(900, ge=10, le=86_400)


class NewLimit(Body):
    """Above which blast radius a run needs approval."""

    hosts: int = Field(ge=0, le=1_000_000)
    percent: float = Field(ge=0, le=100)
