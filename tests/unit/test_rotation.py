"""The phases of a rotation: who is trusted, who signs, what is shown, and who has not come along."""

import pytest
from brownout_controller.fleet.rotation import Phase, Rotation, RotationRefused, Standing, laggards

NOW_NS = 1_000
START = Rotation(Phase.STANDBY, 1, None, 0)


def after(*steps: str) -> Rotation:
    rotation = START
    for step in steps:
        rotation = rotation.rolled_back(NOW_NS) if step == "back" else rotation.advanced(NOW_NS)
    return rotation


@pytest.mark.parametrize(
    ("steps", "phase", "trusted", "issuing", "presenting"),
    [
        ((), Phase.STANDBY, (1,), 1, 1),
        (("on",), Phase.INIT, (1, 2), 1, 1),
        (("on", "on"), Phase.UPDATE_CLIENTS, (1, 2), 2, 1),
        (("on", "on", "on"), Phase.UPDATE_SERVERS, (1, 2), 2, 2),
        (("on", "on", "on", "on"), Phase.STANDBY, (2,), 2, 2),
        (("on", "back"), Phase.ROLLBACK, (1, 2), 1, 1),
        (("on", "on", "back"), Phase.ROLLBACK, (1, 2), 1, 1),
        (("on", "on", "on", "back"), Phase.ROLLBACK, (1, 2), 1, 1),
        (("on", "on", "on", "back", "on"), Phase.STANDBY, (1,), 1, 1),
    ],
)
def test_every_phase_trusts_signs_and_shows_what_it_should(
    steps: tuple[str, ...], phase: Phase, trusted: tuple[int, ...], issuing: int, presenting: int
) -> None:
    rotation = after(*steps)
    assert (rotation.phase, rotation.trusted, rotation.issuing, rotation.presenting) == (
        phase, trusted, issuing, presenting,
    )  # fmt: skip


def test_what_signs_and_what_is_shown_was_trusted_one_phase_earlier_and_is_one_phase_later() -> None:
    paths = [("on",) * n for n in range(5)] + [("on",) * n + ("back",) for n in (1, 2, 3)]
    for path in paths:
        rotation = after(*path)
        following = rotation.advanced(NOW_NS)
        assert {following.issuing, following.presenting} <= {*rotation.trusted, *following.trusted}
        if following.phase is not Phase.INIT:
            assert {following.issuing, following.presenting} <= set(rotation.trusted)
        assert rotation.issuing in following.trusted, "no certificate that is signed now is refused next"


@pytest.mark.parametrize("steps", [(), ("on", "back")])
def test_there_is_nothing_to_take_back(steps: tuple[str, ...]) -> None:
    with pytest.raises(RotationRefused, match="nothing to roll back"):
        after(*steps).rolled_back(NOW_NS)


@pytest.mark.parametrize(
    ("seen_ns", "trusts", "generation", "expires_ns", "lack"),
    [
        (NOW_NS, "both", 2, 9_999, ""),
        (NOW_NS - 1, "both", 2, 9_999, "was not here in phase update_clients"),
        (None, "", None, 9_999, "was not here"),
        (NOW_NS, "old", 2, 9_999, "does not trust both"),
        (NOW_NS, "both", 1, 9_999, "of generation 1, not 2"),
        (None, "", None, 1_500, ""),  # its certificate has run out: it must join again anyway
    ],
)
def test_an_agent_that_has_not_come_along_is_named_with_what_it_lacks(
    seen_ns: int | None, trusts: str, generation: int | None, expires_ns: int, lack: str
) -> None:
    agent = Standing("id", "app-1", seen_ns, trusts, generation, expires_ns)
    found = laggards(after("on", "on"), "both", [agent], 2_000)
    assert [one for one, _ in found] == ([agent] if lack else [])
    assert all(lack in text for _, text in found)


def test_in_standby_nobody_is_behind() -> None:
    assert laggards(START, "x", [Standing("id", "app-1", None, "", None, 9_999)], NOW_NS) == []
