"""The form of an API token: `bo_<id>_<secret><check>`. It tells scanners what they found; it proves nothing by itself.

The secret has 256 random bits, so its plain SHA-256 may be kept: there is nothing to guess. The check is the CRC-32 of
what stands before it, so that a typing error, or a string that only looks alike, is known without a look into any table
(as GitHub's tokens, github.blog/2021-04-05-behind-githubs-new-authentication-token-formats).
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "bo_"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_BYTES = 32
_SECRET_LENGTH = 43
_CHECK_LENGTH = 6
_FORM = re.compile(rf"{PREFIX}([0-9a-f]{{12}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_CHECK_LENGTH}}})")


@dataclass(frozen=True, slots=True)
class Token:
    """A token in full. `text` is shown once and kept nowhere."""

    token_id: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, hex: what is kept."""
        return digest_of(self.text)


def new_token() -> Token:
    """A fresh one."""
    token_id = secrets.token_hex(6)
    body = f"{PREFIX}{token_id}_{_base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_LENGTH)}"
    return Token(token_id, body + _check(body))


def parse_token(text: str) -> Token | None:
    """The token of a text; None for anything that no controller ever made."""
    match = _FORM.fullmatch(text)
    if match is None or _check(text[:-_CHECK_LENGTH]) != match[3]:
        return None
    return Token(match[1], text)


def digest_of(text: str) -> str:
    """SHA-256 of a token's text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))
