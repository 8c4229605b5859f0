"""Write docs/reference.md from what validates: every fault, probe, watcher, metric and key. `--check`: is it fresh?

.venv/bin/python tools/reference.py [--check]
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from brownout_agent.faults import catalogue
from brownout_controller.cli.explain import Topic, all_topics
from brownout_controller.language.expectations import METRICS

DOCUMENT = Path(__file__).parents[1] / "docs/reference.md"
SECTIONS = ("experiment", "targets", "probes", "watch", "steady_state", "guards", "faults")


def reference() -> str:
    """The whole document."""
    topics = all_topics()
    kinds = [name for name in topics if name.count(".") == 1 and name.partition(".")[0] in {"probes", "watch"}]
    settings = [topics[name] for name in kinds if topics[name].parts and name != "probes.identity"]
    parts = [
        "# Reference\n\nMade by `tools/reference.py` from what validates; `brownout explain NAME` shows the same.",
        "## Faults",
        *(_table(topics[kind], f"### {kind}") for kind in catalogue()),
        "## Keys of an experiment",
        *(_table(topics[name], f"### {name}") for name in SECTIONS),
        "## Probes and watchers",
        *(_table(topic, f"### {topic.name}") for topic in settings),
        "## Metrics of expectations\n\n| metric | of | unit | definition |\n|---|---|---|---|",
    ]
    rows = (f"| `{m.name}` | {m.observer} | {m.unit} | {_cell(m.definition)} |" for m in METRICS.values())
    return "\n\n".join(parts) + "\n" + "\n".join(rows) + "\n"


def _table(topic: Topic, heading: str) -> str:
    return f"{heading}\n\n{topic.summary}\n\n| name | meaning |\n|---|---|\n" + "\n".join(_rows(topic.parts))


def _rows(parts: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, text in parts:
        shown = name.strip("()") if name.startswith("(") else f"`{name}`"
        yield f"| {shown} | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write, or compare."""
    fresh = reference()
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(fresh, encoding="utf-8")
    elif not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != fresh:
        raise SystemExit(f"{DOCUMENT.name} is stale. Next: .venv/bin/python tools/reference.py")


if __name__ == "__main__":
    main()
