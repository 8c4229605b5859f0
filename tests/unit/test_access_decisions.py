"""Who may do what on what: roles, environments, host labels, what a token narrows, and when a run needs approval."""

import pytest
from brownout_controller.access.approvals import (
    APPROVAL_TTL_MAX_S,
    APPROVAL_TTL_S,
    Approval,
    Blast,
    BlastLimit,
    find_approval,
    may_approve,
    may_start,
)
from brownout_controller.access.decisions import Grant, Place, Principal, decide, narrowed
from brownout_controller.access.permissions import PERMISSIONS, STOPPING, Over, Permission, Role, roles_with
from brownout_controller.language.selectors import Selector
from hypothesis import given
from hypothesis import strategies as st

STAGING = frozenset({"staging"})
APP = Selector.parse("role=app")
APP_1, APP_2, DB_1 = ({"host": name, "role": name[:-2]} for name in ("app-1", "app-2", "db-1"))
IN_STAGING = Place("staging", (APP_1,))
NS = 10**9

grants = st.builds(
    Grant,
    st.sampled_from(Role),
    st.none() | st.frozensets(st.sampled_from(["staging", "prod"]), min_size=1),
    st.none() | st.sampled_from([APP, Selector.parse("role=db")]),
)
places = st.builds(
    Place, st.sampled_from(["staging", "prod", ""]), st.lists(st.sampled_from([APP_1, APP_2, DB_1])).map(tuple)
)


def principal(*given_grants: Grant, user: str = "mary") -> Principal:
    return Principal(user, given_grants)


def may(someone: Principal, permission: Permission, place: Place | None = IN_STAGING) -> bool:
    return decide(someone, permission, place).allowed


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("permission", Permission)
def test_a_role_without_limits_gives_what_stands_in_the_table_and_nothing_else(
    role: Role, permission: Permission
) -> None:
    decision = decide(principal(Grant(role)), permission, IN_STAGING)
    assert decision.allowed == (permission in PERMISSIONS[role])
    if not decision.allowed:
        assert all(other in decision.reason for other in roles_with(permission))


def test_every_permission_is_somebodys_and_nobody_but_the_admin_manages_people() -> None:
    assert all(roles_with(permission) for permission in Permission)
    for permission in (Permission.USER_MANAGE, Permission.TOKEN_MANAGE, Permission.HOST_ENROL, Permission.LIMIT_SET):
        assert roles_with(permission) == (Role.ADMIN,)
    assert roles_with(Permission.APPROVAL_GIVE) == (Role.APPROVER,)
    assert PERMISSIONS[Role.HALTER] == STOPPING | {Permission.SELF_READ, Permission.LEVER_READ}


def test_words_of_permissions_are_different_and_of_the_form_object_verb() -> None:
    words = [permission.word for permission in Permission]
    assert len(set(words)) == len(words)
    assert all(word.count(".") == 1 for word in words)


def test_a_grant_holds_in_its_environment_only() -> None:
    someone = principal(Grant(Role.VIEWER, STAGING))
    assert may(someone, Permission.RUN_READ)
    refused = decide(someone, Permission.RUN_READ, Place("prod", (APP_1,)))
    assert refused.reason == "mary has run.read, but not for environment `prod`"


def test_what_belongs_to_no_known_environment_needs_a_grant_for_all_of_them() -> None:
    assert not may(principal(Grant(Role.VIEWER, frozenset({"staging", ""}) - {""})), Permission.RUN_READ, Place(""))
    assert may(principal(Grant(Role.VIEWER)), Permission.RUN_READ, Place(""))


def test_every_host_of_a_place_must_be_covered_and_several_grants_may_share_that() -> None:
    place = Place("staging", (APP_1, DB_1))
    apps, databases = Grant(Role.AUTHOR, STAGING, APP), Grant(Role.AUTHOR, STAGING, Selector.parse("role=db"))
    assert decide(principal(apps), Permission.RUN_START, place).reason == "mary has run.start, but not for db-1"
    assert may(principal(apps, databases), Permission.RUN_START, place)
    assert not may(principal(apps, Grant(Role.VIEWER)), Permission.RUN_START, place), "another role's reach is not mine"


def test_a_grant_for_some_hosts_does_not_cover_what_is_about_no_host() -> None:
    assert not may(principal(Grant(Role.VIEWER, None, APP)), Permission.RUN_READ, Place("staging"))
    assert may(principal(Grant(Role.VIEWER)), Permission.RUN_READ, Place("staging"))


def test_what_belongs_to_the_whole_system_needs_a_grant_without_limits() -> None:
    assert may(principal(Grant(Role.ADMIN)), Permission.USER_MANAGE, None)
    for limited in (Grant(Role.ADMIN, STAGING), Grant(Role.ADMIN, None, APP)):
        assert not may(principal(limited), Permission.USER_MANAGE, None)


def test_whoever_may_pull_the_lever_anywhere_may_pull_it() -> None:
    assert may(principal(Grant(Role.OPERATOR, STAGING, APP)), Permission.LEVER_PULL, None)


@given(
    st.lists(grants),
    st.none() | st.frozensets(st.sampled_from(Role)),
    st.none() | st.frozensets(st.sampled_from(["staging", "prod"]), min_size=1),
    places,
)
def test_a_token_never_gives_more_than_its_owner_has(
    owned: list[Grant], roles: frozenset[Role] | None, environments: frozenset[str] | None, place: Place
) -> None:
    owner, holder = Principal("o", tuple(owned)), Principal("o", narrowed(owned, roles, environments))
    for permission in Permission:
        if decide(holder, permission, place).allowed:
            assert decide(owner, permission, place).allowed
            if environments is not None and permission.over is not Over.ANYTHING:
                assert permission.over is Over.PLACE
                assert place.environment in environments


@given(st.lists(grants))
def test_a_halt_only_token_can_halt_where_its_owner_can_and_do_nothing_else(owned: list[Grant]) -> None:
    halter = Principal("o", narrowed(owned, frozenset({Role.HALTER}), None))
    owner = Principal("o", tuple(owned))
    for permission in STOPPING:
        assert halter.has(permission) == owner.has(permission)
    assert not any(halter.has(permission) for permission in set(Permission) - PERMISSIONS[Role.HALTER])


# ---- approvals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "of", "why"),
    [
        (0, 0, ""),
        (1, 4, ""),
        (1, 3, "it reaches 1 of 3 hosts (33.3 %), and more than 25 % needs approval"),
        (2, 8, "it reaches 2 of 8 hosts (25 %), and more than 1 needs approval"),
    ],
)
def test_above_one_host_or_a_quarter_a_run_needs_approval(hosts: int, of: int, why: str) -> None:
    assert BlastLimit().exceeded(Blast(hosts, of)) == why


def test_a_limit_counts_to_its_very_number() -> None:
    limit = BlastLimit(hosts=3, percent=50)
    assert not limit.exceeded(Blast(3, 6))
    assert limit.exceeded(Blast(4, 100))
    assert limit.exceeded(Blast(3, 5))


def test_nobody_approves_a_plan_of_their_own_and_only_approvers_approve() -> None:
    approver = Grant(Role.APPROVER, STAGING)
    assert may_approve(principal(approver), IN_STAGING, "john").allowed
    assert not may_approve(principal(approver, Grant(Role.AUTHOR)), IN_STAGING, "mary").allowed
    assert not may_approve(principal(approver), Place("prod", (APP_1,)), "john").allowed
    assert not may_approve(principal(Grant(Role.ADMIN)), IN_STAGING, "john").allowed


def approval(**more: object) -> Approval:
    values: dict[str, object] = {
        "approval_id": 1,
        "digest": "d",
        "approver": "ann",
        "given_ns": 0,
        "expires_ns": 10 * NS,
    }
    return Approval(**{**values, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_approval", "now_ns", "still", "found"),
    [
        (approval(), 5 * NS, True, True),
        (approval(), 10 * NS, True, False),
        (approval(), 10 * NS - 1, True, True),
        (approval(given_ns=6 * NS), 5 * NS, True, False),
        (approval(digest="other"), 5 * NS, True, False),
        (approval(withdrawn_ns=1), 5 * NS, True, False),
        (approval(approver="mary"), 5 * NS, True, False),
        (approval(approver="john"), 5 * NS, True, False),
        (approval(), 5 * NS, False, False),
    ],
)
def test_an_approval_counts_for_its_plan_and_time_from_somebody_who_is_not_involved_and_may_still_approve(
    given_approval: Approval, now_ns: int, still: bool, found: bool
) -> None:
    asked: list[str] = []

    def still_approver(name: str) -> bool:
        asked.append(name)
        return still

    result = find_approval([given_approval], "d", frozenset({"mary", "john"}), still_approver, now_ns)
    assert (result == given_approval) == found
    assert asked in ([], [given_approval.approver])


@pytest.mark.parametrize(
    ("role", "blast", "approved", "allowed"),
    [
        (Role.AUTHOR, Blast(1, 8), False, True),
        (Role.AUTHOR, Blast(2, 8), False, False),
        (Role.AUTHOR, Blast(2, 8), True, True),
        (Role.OPERATOR, Blast(1, 8), False, False),
        (Role.OPERATOR, Blast(8, 8), True, True),
        (Role.VIEWER, Blast(1, 8), True, False),
        (Role.APPROVER, Blast(1, 8), True, False),
        (Role.ADMIN, Blast(1, 8), True, False),
    ],
)
def test_who_starts_what_with_and_without_approval(role: Role, blast: Blast, approved: bool, allowed: bool) -> None:
    decision = may_start(principal(Grant(role)), IN_STAGING, blast, BlastLimit(), approved)
    assert decision.allowed == allowed
    assert bool(decision.reason) != allowed


def test_an_approval_does_not_widen_where_somebody_may_start() -> None:
    someone = principal(Grant(Role.OPERATOR, STAGING, APP))
    assert may_start(someone, IN_STAGING, Blast(1, 8), BlastLimit(), True).allowed
    assert not may_start(someone, Place("staging", (APP_1, DB_1)), Blast(1, 8), BlastLimit(), True).allowed
    assert not may_start(someone, Place("prod", (APP_1,)), Blast(1, 8), BlastLimit(), True).allowed


def test_an_approval_counts_from_the_very_instant_at_which_it_is_given_for_a_day_or_a_week_at_most() -> None:
    assert approval(given_ns=5 * NS).good(5 * NS)
    assert not approval(given_ns=5 * NS).good(5 * NS - 1)
    assert (APPROVAL_TTL_S, APPROVAL_TTL_MAX_S) == (86_400, 604_800)
    assert Blast(0, 0).percent == 0.0


def test_a_grant_reads_as_its_role_and_where_it_holds() -> None:
    assert str(Grant(Role.VIEWER)) == "viewer in every environment"
    assert str(Grant(Role.AUTHOR, frozenset({"staging", "prod"}), APP)) == f"author in prod, staging on {APP}"


def test_whether_somebody_has_a_permission_is_asked_anywhere_or_in_an_environment() -> None:
    someone = principal(Grant(Role.AUTHOR, STAGING), Grant(Role.VIEWER))
    assert someone.token_id == ""
    has = [someone.has(Permission.RUN_START, environment) for environment in (None, "staging", "prod")]
    assert has == [True, True, False]
    assert someone.has(Permission.RUN_READ, "prod") is True


def test_a_refusal_says_who_may_or_where_somebody_may_not() -> None:
    viewer = principal(Grant(Role.VIEWER, STAGING), Grant(Role.AUTHOR, STAGING, APP))
    assert decide(viewer, Permission.APPROVAL_GIVE, IN_STAGING).reason.endswith("; these may: approver")
    assert decide(viewer, Permission.RUN_HALT, IN_STAGING).reason == ""
    assert decide(principal(Grant(Role.HALTER)), Permission.RUN_START, IN_STAGING).reason.endswith("operator, author")
    assert "environment `" not in decide(viewer, Permission.RUN_READ, Place("")).reason
    assert decide(viewer, Permission.RUN_READ, Place("")).reason.endswith(
        "not for what belongs to no known environment"
    )
    nameless = Place("staging", ({"role": "db"},))
    assert decide(viewer, Permission.RUN_START, nameless).reason.endswith("not for a host")
    limited = principal(Grant(Role.ADMIN, STAGING))
    assert decide(limited, Permission.USER_MANAGE).reason.startswith("user.manage belongs to no environment")


def test_a_token_keeps_the_grants_behind_one_that_it_leaves_out() -> None:
    owned = (Grant(Role.VIEWER, frozenset({"prod"})), Grant(Role.AUTHOR, STAGING), Grant(Role.AUTHOR, STAGING))
    assert narrowed(owned, None, STAGING) == (Grant(Role.AUTHOR, STAGING),)
