"""Hosts of the fleet as plans and records see them."""

import json
import time
from typing import Any

from brownout_controller.fleet.sessions import HostState
from brownout_controller.planning.fleet_view import HostView


def view_of(host: HostState) -> HostView:
    """A connected host as a plan sees it."""
    able = host.able
    clock = host.clock.best(time.monotonic_ns())
    return HostView(
        name=host.name,
        labels=dict(host.labels),
        environment=host.hello.environment,
        kinds=frozenset(able),
        unable={kind: (found.reason, found.remedy) for kind, found in able.items() if not found.able},
        injector_attached=host.hello.injector_attached,
        policy=host.hello.policy,
        agent_version=host.hello.version,
        clock_error_ms=None if clock is None else clock.error_ns / 1e6,
        addresses=tuple(host.hello.addresses),
    )


def shown(host: HostState) -> dict[str, Any]:
    """A connected host as lists show it, with what it can do."""
    view = view_of(host)
    faults = [
        {"kind": kind, "able": found.able, "reason": found.reason, "remedy": found.remedy}
        for kind, found in sorted(host.able.items())
    ]
    return {
        "name": view.name, "labels": dict(view.labels), "version": view.agent_version,
        "environment": view.environment, "clock_error_ms": view.clock_error_ms, "policy": view.policy,
        "injector": view.injector_attached, "addresses": [*view.addresses], "faults": faults,
    }  # fmt: skip


def described(host: HostState) -> str:
    """The same for controllers that it is not connected to (JSON). How well they know its clock is theirs to say."""
    return json.dumps({**shown(host), "clock_error_ms": None}, sort_keys=True)


def describe(host: HostState) -> dict[str, Any]:
    """A host as a run's record keeps it. The offset is between clocks that count from boot, so only its error tells."""
    clock = host.clock.best(time.monotonic_ns())
    return {
        "name": host.name,
        "agent_id": host.agent_id,
        "labels": dict(host.labels),
        "agent_version": host.hello.version,
        "policy": host.hello.policy,
        "boot_id": host.hello.boot_id,
        "clock_offset_ns": clock.offset_ns if clock else None,
        "clock_error_ns": clock.error_ns if clock else None,
    }
