"""From which local ports the kernel chooses, and towards whom they may run out. No kernel."""

import pytest
from brownout_agent.faults.network_ephemeral_ports import EphemeralPortsParameters, local_ports
from pydantic import ValidationError


def test_reserved_ports_are_not_chosen() -> None:
    assert local_ports("10\t13\n", "\n") == {10, 11, 12, 13}
    assert local_ports("10 20", "12,14-16,19-30") == {10, 11, 13, 17, 18}


@pytest.mark.parametrize("to", ["10.0.0.9", "fd99::2", "db.example.com", "10.0.0.9/32"])
def test_one_address_or_a_host_is_meant(to: str) -> None:
    assert EphemeralPortsParameters.model_validate({"to": to, "port": 5432}).to == to


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"to": "10.0.0.0/24", "port": 1}, "is a network: name one address"),
        ({"to": "not a host", "port": 1}, "is not an address, a CIDR or a host name"),
        ({"to": "10.0.0.9", "port": 0}, "greater than or equal to 1"),
        ({"to": "10.0.0.9", "port": 65_536}, "less than or equal to 65535"),
        ({"to": "10.0.0.9"}, "Field required"),
    ],
)
def test_anything_else_is_refused(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        EphemeralPortsParameters.model_validate(wrong)
