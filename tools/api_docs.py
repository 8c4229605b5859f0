"""Write the tables of docs/api.md from the code: roles x permissions, and every route. `--check`: are they fresh?

.venv/bin/python tools/api_docs.py [--check]
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from brownout_controller.access.permissions import PERMISSIONS, Permission, Role
from brownout_controller.api import routes
from brownout_controller.api.gate import GuardedRoute, declared

DOCUMENT = Path(__file__).parents[1] / "docs/api.md"


def permissions() -> Iterable[str]:
    """Every permission, what it is over, and who has it."""
    yield f"| permission | lets one | over | {' | '.join(Role)} |"
    yield "|---|---|---|" + ":-:|" * len(Role)
    for permission in Permission:
        has = " | ".join("✓" if permission in PERMISSIONS[role] else "" for role in Role)
        yield f"| `{permission.word}` | {permission.text} | {permission.over} | {has} |"


def all_routes() -> Iterable[str]:
    """Every route and the permission that it needs."""
    yield "| route | needs | does |\n|---|---|---|"
    for route in (route for several in routes.ALL for route in several.routes):
        assert isinstance(route, GuardedRoute)
        asked = declared(route.dependant)
        assert asked is not None
        word = f"`{asked.permission.word}`" if asked.permission else "nothing"
        for method in sorted(route.methods):
            yield f"| `{method} {route.path}` | {word} | {route.description.splitlines()[0]} |"


def fresh(text: str) -> str:
    """The document with its tables made anew."""
    return _put(_put(text, "permissions", permissions()), "routes", all_routes())


def _put(text: str, name: str, lines: Iterable[str]) -> str:
    begin, end = f"<!-- {name}: tools/api_docs.py -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    assert ended, f"{DOCUMENT.name} has no place for {name}"
    return "\n".join([before + begin, *lines, end + after])


def main() -> None:
    """Write, or compare."""
    text = DOCUMENT.read_text(encoding="utf-8")
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(fresh(text), encoding="utf-8")
    elif fresh(text) != text:
        raise SystemExit(f"{DOCUMENT.name} is stale. Next: .venv/bin/python tools/api_docs.py")


if __name__ == "__main__":
    main()
