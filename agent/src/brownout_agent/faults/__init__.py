"""The fault catalogue. Every module here that defines a `Fault` is found; others come by entry point."""

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from brownout_agent.faults.contract import Fault

ENTRY_POINT_GROUP = "brownout.faults"


@cache
def catalogue() -> dict[str, Fault[Any]]:
    """Every fault by its kind, sorted. Ours are found by looking through this package, others by entry point.

    Raises:
        ValueError: two faults claim one kind.
    """
    modules = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    classes = [found for module in modules for found in _faults_of(module)]
    classes += [point.load() for point in entry_points(group=ENTRY_POINT_GROUP)]
    found: dict[str, Fault[Any]] = {}
    for cls in classes:
        if cls.kind in found:
            raise ValueError(f"two faults claim {cls.kind}: {cls.__module__} and {type(found[cls.kind]).__module__}")
        found[cls.kind] = cls()
    return dict(sorted(found.items()))


def _faults_of(module: Any) -> list[type[Fault[Any]]]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Fault)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]
