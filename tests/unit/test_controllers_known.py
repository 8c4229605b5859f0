"""Which controller an agent tries next and when, and what it may be told."""

import asyncio
import random
from dataclasses import replace

import pytest
from brownout_agent.agent import controllers
from brownout_agent.agent.controllers import BACK_OFF_S, Controllers, is_address
from brownout_agent.agent.identity import Membership

JOINED = Membership("ctl.test:7700", 7701, "app-1", {})
TOLD = replace(JOINED, controllers=["127.0.0.1:7700", "127.0.0.2:7700"])


def test_the_last_one_comes_first_and_where_it_joined_at_the_end_and_again() -> None:
    known = Controllers(TOLD)
    order = ["127.0.0.1:7700", "127.0.0.2:7700", "ctl.test:7700"]
    assert [known.next() for _ in range(6)] == order * 2


def test_after_a_welcome_the_round_begins_anew_with_what_it_was_told() -> None:
    known = Controllers(JOINED)
    assert [known.next() for _ in range(2)] == ["ctl.test:7700"] * 2
    known.told(TOLD)
    assert known.changed.is_set()
    known.welcomed()
    assert known.next() == "127.0.0.1:7700"


def test_the_first_try_comes_soon_and_the_bound_doubles_with_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    known = Controllers(TOLD)
    bounds = []
    for _ in range(27):
        known.next()
        bounds.append(known.back_off_s())
    assert bounds == [min(BACK_OFF_S[1], BACK_OFF_S[0] * 2**turn) for turn in range(9) for _ in range(3)]
    known.welcomed()
    assert known.back_off_s() == BACK_OFF_S[0]


def test_a_name_that_does_not_resolve_keeps_the_addresses_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, controllers.Addresses] = {"ctl.test:7700": (("192.0.2.1", 7700), ("192.0.2.2", 7700))}

    async def resolve(where: str) -> controllers.Addresses:
        return found.get(where, ())

    async def story() -> None:
        known = Controllers(TOLD)
        monkeypatch.setattr(controllers, "_resolve", resolve)
        assert await known.addresses() == (("192.0.2.1", 7700), ("192.0.2.2", 7700))
        found.clear()
        found["127.0.0.1:7700"] = (("127.0.0.1", 7700),)
        assert await known.addresses() == (("127.0.0.1", 7700), ("192.0.2.1", 7700), ("192.0.2.2", 7700))

    asyncio.run(story())


def test_numbers_are_addresses_at_once_and_a_name_may_have_several() -> None:
    async def story() -> None:
        known = Controllers(replace(JOINED, controller="localhost:7700", controllers=["[::1]:7800", "127.0.0.9:7900"]))
        addresses = await known.addresses()
        assert {("::1", 7800), ("127.0.0.9", 7900), ("127.0.0.1", 7700)} <= set(addresses)

    asyncio.run(story())


@pytest.mark.parametrize("text", ["", "host", "host:", ":7700", "host:0", "host:65536", "host:x", "host:7700000000"])
def test_what_is_no_address_is_not_believed_to_be_one(text: str) -> None:
    assert not is_address(text)


@pytest.mark.parametrize("text", ["host:1", "10.0.0.1:65535", "[::1]:7700"])
def test_what_is_an_address_is_believed(text: str) -> None:
    assert is_address(text)
