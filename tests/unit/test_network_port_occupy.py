"""Which ports `network.port_occupy` means. No kernel."""

import pytest
from brownout_agent.faults.network_port_occupy import PORTS_MAX, PortOccupyParameters
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("port", "means"),
    [
        (5432, (5432,)),
        ("8000-8002", (8000, 8001, 8002)),
        ([9000, "8000-8001", 8001], (8000, 8001, 9000)),
    ],
)
def test_ports_are_one_a_range_or_a_list_each_once(port: object, means: tuple[int, ...]) -> None:
    assert PortOccupyParameters.model_validate({"port": port}).ports == means


def test_any_protocol_is_both() -> None:
    assert PortOccupyParameters.model_validate({"port": 1}).protocols == ("tcp",)
    assert PortOccupyParameters.model_validate({"port": 1, "protocol": "any"}).protocols == ("tcp", "udp")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "Field required"),
        ({"port": []}, "at least 1 item"),
        ({"port": 0}, "not a port range"),
        ({"port": "8080-8000"}, "the lower one first"),
        ({"port": "http"}, "is not a port"),
        ({"port": True}, "valid string"),
        ({"port": f"1-{PORTS_MAX + 1}"}, f"{PORTS_MAX} at most"),
        ({"port": 1, "protocol": "icmp"}, "'tcp', 'udp' or 'any'"),
        ({"port": 1, "address": "db-1"}, "does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_what_is_no_port_is_refused(given: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        PortOccupyParameters.model_validate(given)
