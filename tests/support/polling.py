"""Wait for what gives no event, with a deadline."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 5.0) -> None:
    """Look every 5 ms until `holds()`; fail after `within_s`, saying what did not come about."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.005)
