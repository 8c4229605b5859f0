"""Which hosts the peers of a network fault are: targets of the experiment, by their names, or sides of a partition.

What is named in `to` and is a target means the hosts of that target, on each host without itself. Their addresses are
those that their agents tell, and are looked up when the fault is sent, since a virtual address moves in a failover.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from brownout_agent.faults import catalogue
from brownout_agent.faults.network_partition import PartitionParameters
from brownout_agent.faults.network_scope import NetworkParameters, as_list

from brownout_controller.language.experiment import FaultSpec
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.partitions import Cut, cut


class NoPeers(Exception):
    """A fault whose peers are nobody; the text says why."""


def named_targets(fault: FaultSpec, targets: Iterable[str]) -> tuple[str, ...]:
    """Those of these targets that the fault names as its peers."""
    if not issubclass(catalogue()[fault.inject].Parameters, NetworkParameters):
        return ()
    return tuple(name for name in targets if name in _peers_of(fault.parameters))


def peers_of(
    fault: FaultSpec, targets: Iterable[str], chosen: Sequence[str], hosts_of: Callable[[str], Sequence[str]], seed: str
) -> Cut | None:
    """The hosts that the fault means on each of its own; None where it names none, and means what is written.

    A chosen host that would have no peer at all is left out: the middle of a bridge, a host that is its own only peer.

    Raises:
        NoPeers: nobody is left, or the target has too few hosts for the shape.
    """
    shape = fault.parameters.get("shape") if fault.inject == "network.partition" else None
    if shape is not None:
        parameters = PartitionParameters.model_validate(fault.parameters)
        try:
            return cut(shape, chosen, seed, parameters.direction) if chosen else {}
        except ValueError as error:
            raise NoPeers(str(error)) from error
    named = named_targets(fault, targets)
    if not named:
        return None
    meant = sorted({host for name in named for host in hosts_of(name)})
    has_more = len(_peers_of(fault.parameters)) > len(named)
    peers = {host: tuple(other for other in meant if other != host) for host in chosen}
    left = {host: others for host, others in peers.items() if others or has_more}
    if chosen and not left:
        alone = "no host but the fault's own" if meant else "no host"
        raise NoPeers(f"its peers are nobody: {' and '.join(f'`{name}`' for name in named)} has {alone}")
    return left


def addressed(
    parameters: Mapping[str, Any], targets: Iterable[str], own: HostView, peers: Sequence[HostView]
) -> dict[str, Any]:
    """The parameters for one host: in `to` the addresses of its peers beside what was written there, and no shape.

    An address that the host itself has as well (the bridge of a container runtime has the same on every host) leads
    nowhere else, and is left out.
    """
    written = [peer for peer in _peers_of(parameters) if peer not in set(targets)]
    addresses = {address for peer in peers for address in peer.addresses} - {*own.addresses}
    kept = {name: value for name, value in parameters.items() if name != "shape"}
    return {**kept, "to": [*written, *sorted(addresses)]}


def unaddressed(own: HostView, peers: Iterable[HostView]) -> list[HostView]:
    """Those that have told no address by which `own` could reach them."""
    return [peer for peer in peers if not {*peer.addresses} - {*own.addresses}]


def _peers_of(parameters: Mapping[str, Any]) -> list[str]:
    written = as_list(parameters.get("to", []))
    return [str(peer) for peer in written] if isinstance(written, list) else []
