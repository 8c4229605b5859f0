"""The horizontal axis of the picture, and the few helpers that write SVG as text."""

from dataclasses import dataclass
from html import escape

from brownout_controller.analysis.wording import NS_PER_S
from brownout_controller.reporting.visible import visible

_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps [begin_ns, end_ns] onto [left, left + width] pixels. What lies outside is clipped to the edge."""

    begin_ns: int
    end_ns: int
    left: float
    width: float

    @property
    def right(self) -> float:
        """The x of the end."""
        return self.left + self.width

    def x(self, at_ns: float) -> float:
        """Pixels from the left of the picture."""
        share = (at_ns - self.begin_ns) / max(1, self.end_ns - self.begin_ns)
        return round(self.left + self.width * min(1.0, max(0.0, share)), 1)

    def holds(self, at_ns: int) -> bool:
        """Whether this time is in the picture."""
        return self.begin_ns <= at_ns <= self.end_ns

    def meets(self, begun_ns: int, ended_ns: int) -> bool:
        """Whether some of this stretch is in the picture."""
        return begun_ns <= self.end_ns and ended_ns >= self.begin_ns

    def ticks(self, origin_ns: int) -> list[int]:
        """Round times since `origin_ns`, about a hundred pixels apart or more."""
        span_s = max(1e-9, (self.end_ns - self.begin_ns) / NS_PER_S)
        wanted_s = span_s * 100 / self.width
        step_s = next((step for step in _STEPS_S if step >= wanted_s), span_s)
        step_ns = max(1, round(step_s * NS_PER_S))
        first = -(-(self.begin_ns - origin_ns) // step_ns)
        return list(range(origin_ns + first * step_ns, self.end_ns + 1, step_ns))


def element(name: str, content: str = "", **attributes: object) -> str:
    """An SVG element. `content` is markup already; attribute values are escaped. `class_` and `data_x` are spelt so."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(value: object) -> str:
    """A value as text in markup: numbers short, everything of others escaped and made visible."""
    return f"{value:g}" if isinstance(value, float) else escape(visible(value))


def label(x: float, y: float, content: object, *, size: int = 11, class_: str = "ink", **attributes: object) -> str:
    """A line of text."""
    fill = {"ink": "#1f2937", "muted": "#4b5563", "bad": "#b91c1c"}.get(class_, "#1f2937")
    return element(
        "text", text(content), x=x, y=y, font_size=size, font_family="system-ui, sans-serif", fill=fill, class_=class_,
        **attributes,
    )  # fmt: skip


def hover(content: object) -> str:
    """What shows when the pointer rests on an element, and what assistive technology reads for it."""
    return element("title", text(content))


def width_of(content: str, size: int = 11) -> float:
    """A generous guess at how wide a line of text is; the viewer's font is not known here."""
    return len(content) * size * 0.6
