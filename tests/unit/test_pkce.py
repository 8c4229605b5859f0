"""PKCE, against the example of its RFC, and the code that people compare."""

import re

from brownout_controller.access.pkce import challenge_of, new_verifier, shown_code


def test_the_challenge_is_that_of_the_rfc() -> None:
    verifier, challenge = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert challenge_of(verifier) == challenge, "RFC 7636, appendix B"


def test_a_verifier_is_as_long_as_the_rfc_asks_and_never_the_same() -> None:
    verifiers = {new_verifier() for _ in range(200)}
    assert len(verifiers) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier) for verifier in verifiers), "section 4.1"


def test_two_screens_show_the_same_code_for_one_challenge_and_another_for_another() -> None:
    challenges = [challenge_of(new_verifier()) for _ in range(200)]
    codes = [shown_code(challenge) for challenge in challenges]
    assert codes == [shown_code(challenge) for challenge in challenges]
    assert len(set(codes)) == 200
    assert all(re.fullmatch(r"[A-Z2-7]{4}-[A-Z2-7]{4}", code) for code in codes)
