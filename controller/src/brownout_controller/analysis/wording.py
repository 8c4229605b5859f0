"""How times and quantities are written for people: one place, so that terminal, report and JSON read alike."""

import math
from datetime import UTC, datetime

from brownout_controller.analysis.interval import Interval

NS_PER_S = 1_000_000_000


def clock(at_ns: int, decimals: int = 1) -> str:
    """Wall clock in UTC: `14:02:31.2`. `at_ns` counts from the Unix epoch. Cut off, not rounded up into the future."""
    whole, rest_ns = divmod(at_ns, NS_PER_S)
    text = datetime.fromtimestamp(whole, UTC).strftime("%H:%M:%S")
    return f"{text}.{rest_ns:09d}"[: len(text) + 1 + decimals] if decimals else text


def date_and_clock(at_ns: int) -> str:
    """`2026-11-24 14:02:31 UTC`."""
    return datetime.fromtimestamp(at_ns // NS_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def since(at_ns: int, started_ns: int) -> str:
    """Time since the run began: `T+0:31.2`; `T-0:01.0` before it."""
    tenths = round((at_ns - started_ns) / (NS_PER_S // 10))
    sign, tenths = ("-", -tenths) if tenths < 0 else ("+", tenths)
    minutes, rest = divmod(tenths, 600)
    return f"T{sign}{minutes}:{rest // 10:02d}.{rest % 10}"


def duration(milliseconds: float) -> str:
    """`3.2 ms`, `212 ms`, `6.21 s`, `18.4 s`, `2 min 5 s`; `unbounded` when infinite."""
    if math.isinf(milliseconds):
        return "unbounded"
    if milliseconds == 0:
        return "0 s"
    if milliseconds < 999.5:
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def quantity(value: float, unit: str) -> str:
    """A value in one of the units of expectations: `ms`, `%`, or a count."""
    if unit == "ms":
        return duration(value)
    if math.isinf(value):
        return "unbounded"
    if unit == "%":
        # Cut off near the top, not rounded: one failure in a million requests is not 100%.
        return f"{math.floor(round(value * 1000, 6)) / 1000:g}%" if value >= 99 else f"{value:.3g}%"
    return f"{value:g}"


def estimate(interval: Interval, unit: str) -> str:
    """The best estimate alone; `at least 18.4 s` where nothing bounds it from above."""
    text = quantity(interval.value, unit)
    return f"at least {quantity(interval.low, unit)}" if math.isinf(interval.high) else text


def bounds(interval: Interval, unit: str) -> str:
    """The range that holds the truth: `18.2 s to 18.6 s`; `18.2 s or more`; `exact` for a count."""
    if interval.low == interval.high:
        return "exact"
    if math.isinf(interval.high):
        return f"{quantity(interval.low, unit)} or more"
    return f"{quantity(interval.low, unit)} to {quantity(interval.high, unit)}"


def counted(number: int, noun: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
