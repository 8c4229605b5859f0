"""JSON as the standard has it: no duplicate keys, no NaN, no depth that costs a stack, no half characters."""

import json
import re
from typing import Any, NoReturn

DEPTH_MAX = 32
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


class NotJson(ValueError):
    """This is not JSON that we read; the text says why."""


def strict_loads(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        NotJson: not UTF-8, not JSON, a key twice, NaN or Infinity, nested deeper than 32, a lone surrogate.
    """
    _check_depth(data)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no character, and no database takes it
    except NotJson:
        raise
    except UnicodeError as error:
        raise NotJson(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise NotJson(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:  # an integer of more digits than Python turns into a number
        raise NotJson("a number with too many digits") from error
    return value


def _check_depth(data: bytes) -> None:
    """Before the parser, which would go as deep as the text does."""
    depth = 0
    for match in _TOKEN.finditer(data):
        if match[0] in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise NotJson(f"nested deeper than {DEPTH_MAX}")
        elif match[0] in b"]}":
            depth -= 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJson(f"the key {twice[:60]!r} stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise NotJson(f"{text[:40]} is too large")
    return number
