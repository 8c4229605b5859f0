"""Proof Key for Code Exchange (RFC 7636, method S256): who shows the verifier is who made the challenge."""

import base64
import hashlib
import secrets

SHOWN_LENGTH = 8


def new_verifier() -> str:
    """256 random bits, 43 characters."""
    return secrets.token_urlsafe(32)


def challenge_of(verifier: str) -> str:
    """BASE64URL(SHA-256(ASCII(verifier))), without padding (section 4.2); 43 characters."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")


def shown_code(challenge: str) -> str:
    """40 bits of a challenge for people to compare on two screens, as `7KQ2-M3XA`."""
    digits = base64.b32encode(hashlib.sha256(challenge.encode("ascii")).digest()).decode("ascii")[:SHOWN_LENGTH]
    return f"{digits[:4]}-{digits[4:]}"
