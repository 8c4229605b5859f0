"""The form of API tokens: what a scanner finds, and what can be told from a text alone."""

import re
import zlib

from brownout_controller.access.token_form import digest_of, new_token, parse_token
from hypothesis import given
from hypothesis import strategies as st


def test_a_token_has_a_prefix_an_id_a_secret_of_256_bits_and_a_check() -> None:
    tokens = [new_token() for _ in range(200)]
    for token in tokens:
        assert re.fullmatch(r"bo_[0-9a-f]{12}_[0-9A-Za-z]{49}", token.text)
        assert parse_token(token.text) == token
        assert token.token_id in token.text
    assert 62**43 > 2**256
    assert len({token.text for token in tokens}) == len({token.token_id for token in tokens}) == len(tokens)


def test_only_the_digest_need_be_kept_and_it_is_the_sha_256_of_the_text() -> None:
    assert digest_of("bo_") == "b7a3f65e1d77bb6f0e09b818cedf7cb3f61862eeca4c3d944cbbae539caf8ef6"
    token = new_token()
    assert token.digest == digest_of(token.text)
    assert token.text not in token.digest


@given(position=st.integers(0, 64), character=st.characters(codec="ascii"))
def test_a_token_with_a_wrong_character_is_known_as_none(position: int, character: str) -> None:
    text = _FIXED.text
    changed = text[:position] + character + text[position + 1 :]
    assert (parse_token(changed) is None) == (changed != text)


@given(st.text())
def test_no_other_text_is_a_token(text: str) -> None:
    assert parse_token(text) is None


def test_a_token_with_something_before_or_behind_it_is_none() -> None:
    for text in (f" {_FIXED.text}", f"{_FIXED.text}\n", f"{_FIXED.text}x", _FIXED.text[:-1], ""):
        assert parse_token(text) is None


_FIXED = new_token()


def test_a_token_of_an_earlier_version_is_still_one() -> None:
    """Made by hand from the written form: its check is the CRC-32 of what stands before it, in 62 digits."""
    body = "bo_0123456789ab_" + "0" * 42 + "z"
    assert zlib.crc32(body.encode()) == 1_662_529_411
    assert parse_token(body + "1oVnqV") is not None
