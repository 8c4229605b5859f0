"""The chain and what checkpoints say of it, record by record: every break is told once, where it is, and why."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.chain import GENESIS, Break, Following, Link, canonical, hash_of, link, read_line
from brownout_controller.audit.checkpoint import Checkpoint, SealingKey
from brownout_controller.audit.verifying import Verified, verify


def chain(count: int) -> list[Link]:
    links: list[Link] = []
    for sequence in range(1, count + 1):
        links.append(link(links[-1].hash if links else GENESIS, {"sequence": sequence, "what": f"run {sequence}"}))
    return links


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SealingKey:
    return SealingKey(tmp_path_factory.mktemp("keys"))


def sealed(key: SealingKey, *links: Link) -> list[Checkpoint]:
    return [key.sign(one.sequence, one.hash, 7) for one in links]


def told(*links: Link) -> list[Break]:
    following = Following()
    following.take_all(links)
    return following.breaks


# ---- one record ------------------------------------------------------------------------------------------------------


def test_a_records_hash_is_over_32_bytes_of_the_one_before_and_its_canonical_json() -> None:
    first = {"sequence": 1, "who": "ann \u00e9"}
    text = b'{"sequence":1,"who":"ann \\u00e9"}'
    assert canonical(dict(reversed(first.items()))) == text
    assert bytes.fromhex(GENESIS) == bytes(32)
    hung = link(GENESIS, first)
    assert hung == Link(1, first, GENESIS, hashlib.sha256(bytes(32) + text).hexdigest())
    second = link(hung.hash, {"sequence": 2})
    assert second.hash == hashlib.sha256(bytes.fromhex(hung.hash) + b'{"sequence":2}').hexdigest()
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical({"sequence": number})


def test_a_line_is_read_back_as_the_record_that_it_was_and_its_keys_stand_in_order() -> None:
    one = link(GENESIS, {"what": "x", "sequence": 1})
    assert one.line() == json.dumps(
        {"hash": one.hash, "previous": GENESIS, "record": {"sequence": 1, "what": "x"}}
    )  # fmt: skip
    assert read_line(one.line()) == one


@pytest.mark.parametrize(
    "line",
    [
        "", "no json", "null", "7", "[]", "{}", "[" * 100_000, '{"record": null, "previous": "", "hash": ""}',
        '{"record": {}, "previous": "", "hash": ""}', '{"record": {"sequence": "x"}, "previous": "", "hash": ""}',
        '{"record": {"sequence": 1}, "hash": ""}', '{"record": {"sequence": 1}, "previous": ""}',
        '{"record": {"sequence": 1}, "previous": 7, "hash": ""}',
        '{"record": {"sequence": 1}, "previous": "", "hash": 7}',
    ],
)  # fmt: skip
def test_what_is_no_record_of_a_chain_is_refused_and_crashes_nobody(line: str) -> None:
    with pytest.raises(ValueError, match=r"no record of a chain|Expecting|invalid literal"):
        read_line(line)


# ---- one after the other ---------------------------------------------------------------------------------------------


def test_a_whole_chain_has_no_breaks_from_its_beginning_and_from_any_known_record() -> None:
    links = chain(4)
    assert told(*links) == []
    for known in links:
        following = Following(known.sequence, known.hash)
        following.take_all(links[known.sequence :])
        assert (following.breaks, following.sequence, following.hash) == ([], 4, links[-1].hash)


def test_every_change_is_told_once_at_its_record_with_its_reason() -> None:
    one, two, three, four = chain(4)
    assert [str(found) for found in told(one, three, four)] == ["record 2: it is not there; record 3 comes next"]
    assert told(one, two, two) == [Break(3, "it is not there; record 2 comes next")]
    assert told(two) == [Break(1, "it is not there; record 2 comes next")]
    changed = replace(two, document={**two.document, "what": "run 9"})
    assert told(one, changed, three) == [Break(2, "it is not what it was: its hash is another")]
    rehung = link(GENESIS, two.document)
    assert told(one, rehung) == [Break(2, "it does not hang on the record before it")]
    renumbered = replace(two, document={**two.document, "sequence": 7}, hash=hash_of(one.hash, {"sequence": 7}))
    assert told(one, renumbered)[0] == Break(2, "it says that it is record 7")
    nameless = replace(two, document={}, hash=hash_of(one.hash, {}))
    assert told(one, nameless) == [Break(2, "it says that it is record None")]


def deep() -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"deeper": nested}
    return nested


@pytest.mark.parametrize(
    "wrong",
    [{"previous": "no hex"}, {"document": {"sequence": 2, "x": float("nan")}}, {"document": {"sequence": 2, **deep()}}],
    ids=["no hash", "no number", "too deep"],
)
def test_what_has_no_hash_at_all_is_a_break_and_no_crash(wrong: dict[str, Any]) -> None:
    one, two, three = chain(3)
    breaks = told(one, replace(two, **wrong), three)
    assert {found.sequence for found in breaks} == {2}
    assert breaks[-1].why == "it is not what it was: its hash is another"


# ---- the whole, and what was signed of it ----------------------------------------------------------------------------


def test_what_was_found_says_where_the_chain_begins_how_long_it_is_and_how_far_it_is_sealed(key: SealingKey) -> None:
    links = chain(6)
    keys = {key.public_key}
    assert verify(links, (), ()) == Verified(1, 6, 0, ())
    assert verify(links, sealed(key, links[4], links[1]), keys) == Verified(1, 6, 5, ())
    assert verify(links[2:], sealed(key, links[2], links[5]), keys, (6, links[5].hash)) == Verified(3, 4, 6, ())
    assert verify((), (), ()) == Verified(0, 0, 0, ())
    assert verify((), (), (), (0, GENESIS)).sound


def test_a_beginning_that_was_rotated_away_is_believed_and_one_that_was_cut_out_is_not() -> None:
    links = chain(4)
    missing = Break(1, "it is not there; record 2 comes next")
    assert verify(links[1:], (), ()).breaks == ()
    assert verify([link(GENESIS, links[1].document)], (), ()).breaks == (missing,)
    hung_elsewhere = link("ab" * 32, links[0].document)
    assert verify([hung_elsewhere], (), ()).breaks == (Break(1, "it does not hang on the record before it"),)
    nought = link(GENESIS, {"sequence": 0})
    assert verify([nought], (), ()) == Verified(0, 0, 0, (Break(1, "it is not there; record 0 comes next"),))


def test_an_end_that_is_not_the_noted_one_is_a_break() -> None:
    links = chain(4)
    for end in ((5, links[3].hash), (4, links[2].hash)):
        (found,) = verify(links, (), (), end).breaks
        assert found == Break(4, f"the chain ends here, and was noted to end at record {end[0]}")


def test_a_checkpoint_speaks_for_the_chain_only_where_everything_about_it_fits(key: SealingKey, tmp_path: Path) -> None:
    links, keys = chain(6), {key.public_key}
    (good,), (late,) = sealed(key, links[3]), sealed(key, links[5])
    stranger = SealingKey(tmp_path)
    not_genuine = "its checkpoint is not genuine: the signature does not fit"
    unknown = f"its checkpoint is signed by a key that is not known here, {stranger.public_key}"
    cut_off = "a checkpoint is signed for it, and the log ends at record {}: it was cut off"
    begins_later = "a checkpoint is signed for it, and the log begins later"
    another = "it is not the record that its checkpoint was signed for"
    cases = [
        (links, replace(good, at_ns=8), not_genuine),
        (links, replace(good, signature="no hex"), not_genuine),
        (links, stranger.sign(4, links[3].hash, 7), unknown),
        (links[:3], good, cut_off.format(3)),
        (links[4:], good, begins_later),
        ([*links[:3], *links[4:]], good, another),
        (links, key.sign(4, links[2].hash, 7), another),
        ((), good, cut_off.format(0)),
    ]
    for there, checkpoint, why in cases:
        found = verify(there, [checkpoint], keys)
        assert not found.sound
        assert (found.breaks[-1], found.sealed) == (Break(4, why), 0)
    found = verify(links, [late, replace(good, at_ns=8)], keys)
    assert ([one.sequence for one in found.breaks], found.sealed) == ([4], 6)
    found = verify(links, [replace(late, at_ns=8), good], keys)
    assert ([one.sequence for one in found.breaks], found.sealed) == ([6], 4)
    for edge in (links[0], links[5]):
        assert verify(links, sealed(key, edge), keys) == Verified(1, 6, edge.sequence, ())
