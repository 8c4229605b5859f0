"""Quantities as people write them: `30s`, `512MiB`, `10mbit`. Free of pydantic, so the agent may import it.

Durations follow Go (`300ms`, `30s`, `2h45m`); ISO 8601 (`PT10M`) is also read. A number without a unit is an
error that names the likely unit. Sizes: `MiB` is 2**20 bytes, `MB` is 10**6 bytes, as IEC 80000-13 has it.
"""

import math
import re

_DURATION_UNITS_MS = {
    "us": 0.001,
    "ms": 1.0,
    "s": 1_000.0,
    "m": 60_000.0,
    "h": 3_600_000.0,
    "d": 86_400_000.0,
}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)")
_ISO_DURATION = re.compile(r"P(?:([0-9]+)D)?(?:T(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+(?:\.[0-9]+)?)S)?)?")
_SIZE_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_BIT_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_BIT_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?bit)(?:/s)?", re.IGNORECASE)
_CORES_MAX = 8192
"""The kernel's own limit on x86 (NR_CPUS)."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B|B)", re.IGNORECASE)


def parse_duration_ms(text: object) -> float:
    """Milliseconds of `30s`, `300ms`, `2h45m` or `PT10M`.

    Raises:
        ValueError: no unit, negative, or not a duration; the text says what to write instead.
    """
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 300ms or 2h45m")
    if isinstance(text, int | float):
        raise ValueError(f"duration {text:g} has no unit; did you mean {text:g}s?")
    if _DURATION.fullmatch(text):
        return sum(float(number) * _DURATION_UNITS_MS[unit] for number, unit in _DURATION_PART.findall(text))
    iso = _ISO_DURATION.fullmatch(text)
    if iso and any(iso.groups()):
        days, hours, minutes, seconds = (float(group or 0) for group in iso.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60_000 + seconds * 1_000
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ValueError(f"duration `{text}` has no unit; did you mean {text}s?")
    if text.startswith("-"):
        raise ValueError(f"duration `{text}` is negative")
    raise ValueError(f"`{text}` is not a duration; write it like 30s, 300ms or 2h45m")


def format_duration_ms(milliseconds: float) -> str:
    """`90000` -> `1m30s`; `1500` -> `1.5s`; `250` -> `250ms`."""
    if milliseconds < 1_000:
        return f"{milliseconds:g}ms"
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{seconds:.3g}s" if seconds != int(seconds) else f"{int(seconds)}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if count)


def parse_size_bytes(text: object) -> int:
    """Bytes of `512MiB`, `2GB` or `4096B`.

    Raises:
        ValueError: no unit or not a size; the text says what to write instead.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"size {text:g} has no unit; did you mean {text:g}MiB?")
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 512MiB or 2GB")
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def format_size(count_bytes: float) -> str:
    """`536870912` -> `512 MiB`, with three significant digits."""
    size = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def parse_byte_rate(text: object) -> int:
    """Bytes a second of `20MiB/s`, as `rate` of disk faults has it.

    Raises:
        ValueError: no unit, no `/s`, or not a rate.
    """
    if not isinstance(text, str) or not text.endswith("/s"):
        raise ValueError(f"{text!r} is not a rate in bytes; write it like 20MiB/s")
    return parse_size_bytes(text[:-2].strip())


def parse_bit_rate(text: object) -> int:
    """Bits a second of `10mbit` or `64kbit`, as tc(8) writes them: a kbit is 1000 bits.

    Raises:
        ValueError: no unit, bytes, or not a rate; the text says what to write instead.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"rate {text:g} has no unit; did you mean {text:g}mbit?")
    match = _BIT_RATE.fullmatch(text) if isinstance(text, str) else None
    if match is not None:
        return round(float(match[1]) * _BIT_UNITS[match[2].lower()])
    if isinstance(text, str) and (size := _SIZE.fullmatch(text.removesuffix("/s").strip())):
        bits = float(size[1]) * _SIZE_UNITS[size[2].lower()] * 8
        raise ValueError(f"{text!r} is a rate in bytes; this one is in bits: did you mean {bits / 1e6:g}mbit?")
    raise ValueError(f"{text!r} is not a rate in bits; write it like 10mbit or 64kbit")


def parse_percent(value: object) -> float:
    """A percentage above 0 and up to 100, of `50`, `12.5` or `50%`.

    Raises:
        ValueError: outside of 0-100, NaN, or not a number.
    """
    return _percent(value, 100)


def parse_core_percent(value: object) -> float:
    """A percentage of one core: above 0, and above 100 for more than one.

    Raises:
        ValueError: not above 0, of more cores than any host has, NaN, or not a number.
    """
    return _percent(value, 100 * _CORES_MAX)


def _percent(value: object, most: int) -> float:
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?%?", value):
        value = float(value.removesuffix("%"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a percentage; write it like 50 or 50%")
    if not math.isfinite(value) or not 0 < value <= most:
        raise ValueError(f"{value:g} is not a percentage above 0 and up to {most}")
    return float(value)
