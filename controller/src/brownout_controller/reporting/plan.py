"""The plan, for people and for programs."""

from typing import Any

from brownout_agent.quantities import format_duration_ms
from rich.console import Group, RenderableType
from rich.text import Text

from brownout_controller.planning.plan import Plan, PlannedFault
from brownout_controller.reporting.visible import visible


def plan_document(plan: Plan) -> dict[str, Any]:
    """Stable keys: digest, seed, hosts, faults, guards."""
    return {
        "name": plan.experiment.name,
        "digest": plan.digest,
        "seed": plan.seed,
        "environment": plan.experiment.environment,
        "hosts": [
            {"name": host.name, "labels": dict(host.labels), "clock_error_ms": host.clock_error_ms}
            for host in plan.hosts
        ],
        "faults": [
            {
                "name": fault.name,
                "kind": fault.kind,
                "parameters": fault.parameters,
                "at_ms": fault.at_ms,
                "after": fault.after,
                "wait_ms": fault.wait_ms,
                "for_ms": fault.for_ms,
                "hosts": list(fault.hosts),
                "peers": fault.peers,
                "matched": list(fault.matched),
                "chosen_at_injection": fault.chosen_at_injection,
            }
            for fault in plan.faults
        ],
        "probes": [
            {"name": observer.name, "kind": observer.kind, "from": observer.vantage, "every_ms": observer.every_ms}
            for observer in plan.observers
        ],
        "guards": [guard.model_dump(mode="json", by_alias=True) for guard in plan.experiment.guards],
    }


def plan_summary(plan: Plan) -> RenderableType:
    """What would happen, line by line."""
    lines = [Text.assemble((plan.experiment.name, "bold"), f"   environment {plan.experiment.environment}")]
    lines += [Text(_fault_line(fault)) for fault in plan.faults]
    touched = {host for fault in plan.faults for host in (fault.hosts or fault.matched)}
    lines.append(Text(f"  reach   {len(touched)} of {len(plan.hosts)} hosts: {', '.join(sorted(touched))}"))
    for observer in plan.observers:
        every = format_duration_ms(observer.every_ms)
        lines.append(Text(f"  {observer.kind:<7} {observer.name} from {observer.vantage}, every {every}"))
    clocks = [host.clock_error_ms for host in plan.hosts if host.clock_error_ms is not None]
    if clocks:
        lines.append(Text(f"  clocks  known within {max(clocks):.2g} ms"))
    lines.append(Text(f"  digest  {plan.digest[:12]}   seed {plan.seed}"))
    lines.append(Text("Nothing was injected."))
    return Group(*lines)


def _fault_line(fault: PlannedFault) -> str:
    when = (
        f"T+{format_duration_ms(fault.at_ms) if fault.at_ms else '0s'}"
        if fault.after is None
        else f"after {fault.after} + {format_duration_ms(fault.wait_ms) if fault.wait_ms else '0s'}"
    )
    where = "chosen at injection" if fault.chosen_at_injection else ", ".join(fault.hosts) or "no host (skipped)"
    settings = ", ".join(f"{name}={visible(value)}" for name, value in fault.parameters.items())
    lasts = format_duration_ms(fault.for_ms)
    peers = "".join(
        f"\n           {host} from {', '.join(others)}" for host, others in sorted((fault.peers or {}).items())
    )
    return (
        f"  {when:<8} {fault.name}  {fault.kind} {settings} for {lasts}  on {where}  "
        f"({len(fault.hosts)} of {len(fault.matched)} matched){peers}"
    )
