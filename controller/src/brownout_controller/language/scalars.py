"""YAML 1.2 core scalars. What YAML 1.1 and 1.2 read differently is refused, or stays the text that it looks like."""

import math
import re

ScalarValue = None | bool | int | float | str

_CONSTANTS: dict[str, ScalarValue] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")
_LONGEST_NUMBER = 32
_LARGEST = 2**63


class AmbiguousScalar(ValueError):
    """An unquoted value that readers of YAML do not agree on, or that no field can use. The text says what to write."""


def resolve_plain(text: str) -> ScalarValue:
    """The value of an unquoted scalar.

    Raises:
        AmbiguousScalar: `010`, `1:30`, `.nan`, `.inf`, or a number beyond 64 bits.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        raise AmbiguousScalar("is not a finite number; write a number")
    if _SEXAGESIMAL.fullmatch(text):
        raise AmbiguousScalar("is a number to base 60 for some readers of YAML; write 90s or 1m30s, or quote it")
    if not _FLOAT.fullmatch(text) and not _OTHER_BASE.fullmatch(text):
        return text
    if len(text) > _LONGEST_NUMBER:
        raise AmbiguousScalar("has too many digits; write a shorter number, or quote it")
    if _LEADING_ZERO.fullmatch(text):
        raise AmbiguousScalar(
            f"is octal for some readers of YAML; write {text.lstrip('+-0') or '0'}, or quote it to mean the text"
        )
    return _number(text)


def _number(text: str) -> int | float:
    number: int | float
    if _INTEGER.fullmatch(text):
        number = int(text)
    elif _OTHER_BASE.fullmatch(text):
        number = int(text, 0)
    else:
        number = float(text)
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise AmbiguousScalar("is too large a number; write a smaller one, or quote it")
    return number
