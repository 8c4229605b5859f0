"""What holds for every fault in the catalogue, those of other people included. A new fault needs no line here."""

import re
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Capability, Fault, Host
from pydantic import ValidationError

FAULTS = list(catalogue().values())
every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)


def test_the_faults_of_this_version_are_all_there() -> None:
    assert set(catalogue()) >= {
        "cpu.load", "cpu.throttle", "disk.fill", "disk.inodes", "disk.io", "disk.throttle", "dns.answer", "dns.delay",
        "dns.failure", "exec.run", "memory.leak", "memory.limit", "memory.load", "memory.oom",
        "network.accept_queue", "network.blackhole",
        "network.corrupt", "network.duplicate", "network.ephemeral_ports", "network.flap", "network.interface_down",
        "network.latency", "network.loss", "network.partition", "network.port_occupy", "network.rate",
        "network.reject", "network.reorder", "network.reset", "process.crash_loop", "process.fd_exhaustion",
        "process.freeze", "process.kill", "process.pause", "process.pid_exhaustion",
    }  # fmt: skip


@every_fault
def test_its_file_is_named_like_it(fault: Fault[Any]) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", fault.kind)
    assert type(fault).__module__.rpartition(".")[2] == fault.kind.replace(".", "_")


@every_fault
def test_it_says_what_it_does_and_who_ends_it(fault: Fault[Any]) -> None:
    assert 10 < len(fault.summary) < 120
    assert len(fault.reverts) > 20
    undescribed = [name for name, field in fault.Parameters.model_fields.items() if not field.description]
    assert undescribed == []


@every_fault
def test_it_keeps_no_state_of_its_own(fault: Fault[Any]) -> None:
    assert vars(fault) == {}


@every_fault
def test_an_unknown_parameter_refuses_the_whole_order(fault: Fault[Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        fault.Parameters.model_validate({"no-such-parameter": 1})
    assert "extra_forbidden" in {error["type"] for error in refused.value.errors()}


@every_fault
def test_what_it_cannot_do_here_has_a_reason_and_a_remedy(fault: Fault[Any]) -> None:
    found = fault.detect(Host())
    assert isinstance(found, Capability)
    assert found.able == (found.reason == "")
    assert found.able or found.remedy


@every_fault
def test_asking_twice_what_it_can_do_changes_nothing(fault: Fault[Any]) -> None:
    assert fault.detect(Host()) == fault.detect(Host())
