"""Which hosts: by label, in kubectl's notation, and how many of those that match."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_LONGEST_SELECTOR = 500
_KEY = r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_EQUALITY = re.compile(rf"(?P<key>{_KEY})\s*(?P<operator>==|=|!=)\s*(?P<value>{_VALUE})")
_MEMBERSHIP = re.compile(rf"(?P<key>{_KEY})\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)")
_PRESENCE = re.compile(rf"(?P<absent>!?)\s*(?P<key>{_KEY})")
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^()]*\))")

Operator = Literal["in", "notin", "exists", "absent"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. As in Kubernetes, `notin` (and `!=`) also holds for a host without the label."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels meets it."""
        if self.operator == "exists":
            return self.key in labels
        if self.operator == "absent":
            return self.key not in labels
        return (labels.get(self.key) in self.values) == (self.operator == "in")

    def __str__(self) -> str:
        if self.operator in ("exists", "absent"):
            return self.key if self.operator == "exists" else f"!{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.operator == 'in' else '!='}{self.values[0]}"
        return f"{self.key} {self.operator} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements together. The label `host` is a host's own name: `host=db-1`."""

    requirements: tuple[Requirement, ...]

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """The selector of `app=postgres,role!=replica,zone in (a,b),!canary`.

        Raises:
            ValueError: empty (no selector means every host by accident), or not a selector.
        """
        if len(text) > _LONGEST_SELECTOR:
            raise ValueError(f"a selector has at most {_LONGEST_SELECTOR} characters")
        if not text.strip():
            raise ValueError("an empty selector would mean every host; write one like role=app")
        parts = [part.strip() for part in _COMMA_OUTSIDE_BRACKETS.split(text)]
        if not all(parts):
            raise ValueError(f"`{text}` has a comma too many; write one like role=app,zone=a")
        return cls(tuple(_requirement(part) for part in parts))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels is meant."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements)


@dataclass(frozen=True, slots=True)
class Pick:
    """How many of the hosts that match: a number, or a percentage; `all` is 100 %."""

    amount: float
    is_percent: bool = False

    @classmethod
    def parse(cls, value: object) -> "Pick":
        """The pick of `1`, `all` or `50%`.

        Raises:
            ValueError: not that, or not above 0, or above 100 %.
        """
        if value == "all":
            return cls(100, is_percent=True)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(value)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?%", value):
            percent = float(value[:-1])
            if 0 < percent <= 100:
                return cls(percent, is_percent=True)
        raise ValueError(f"`{value}` is not a number of hosts; write 1, all or 50%")

    def of(self, matching: int) -> int:
        """How many of `matching` hosts: percentages round up, and never to 0 unless nothing matches."""
        wanted = math.ceil(matching * self.amount / 100) if self.is_percent else int(self.amount)
        return min(wanted, matching)

    def __str__(self) -> str:
        if not self.is_percent:
            return f"{int(self.amount)}"
        return "all" if self.amount == 100 else f"{self.amount:g}%"


def _requirement(text: str) -> Requirement:
    if match := _EQUALITY.fullmatch(text):
        return Requirement(match["key"], "notin" if match["operator"] == "!=" else "in", (match["value"],))
    if match := _MEMBERSHIP.fullmatch(text):
        values = tuple(value.strip() for value in match["values"].split(","))
        if all(re.fullmatch(_VALUE, value) for value in values):
            return Requirement(match["key"], "in" if match["operator"] == "in" else "notin", values)
    if match := _PRESENCE.fullmatch(text):
        return Requirement(match["key"], "absent" if match["absent"] else "exists")
    raise ValueError(f"`{text}` is not a selector; write one like role=app, role!=app or zone in (a,b)")
