"""Real hosts parted from each other: what every one of them still reaches of the others, by IPv4 and IPv6."""

import json
import os
from pathlib import Path

import pytest
from brownout_controller.demo import services
from brownout_controller.demo.hosts import run_experiment
from brownout_controller.demo.network import ADDRESSES
from brownout_controller.demo.staging import Staging
from brownout_controller.exit_codes import ExitCode
from brownout_controller.record import FaultOutcome, RunRecord
from brownout_controller.reporting.document import from_document

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
TEXT = """
version: 1
name: parted
targets:
  front: {selector: "role=edge", pick: all}
  apps: {selector: "role=app", pick: all}
  everybody: {selector: "role in (app, edge)", pick: all, resolve: at_injection}
probes:
PROBES
steady_state: {before: 2s, after: 3s}
faults:
  - {name: front-from-apps, inject: network.partition, target: apps, with: {to: front}, at: 0s, for: 4s}
  - {name: apart, inject: network.partition, target: everybody, with: {shape: majority}, after: front-from-apps,
     wait: 2s, for: 4s}
"""
HOSTS = ("edge", "app-1", "app-2")
_TIMEOUT_MS = 900
"""For a machine that has much else to do; less than the second after which TCP begins again."""


def probe(seen_from: str, host: str, family: str) -> str:
    """Connects and asks nothing: what HAProxy at the edge answers depends on whom it reaches itself."""
    address = ADDRESSES[host].v4 if family == "v4" else f"[{ADDRESSES[host].v6}]"
    tcp = f'{{address: "{address}:{services.SHOP_PORT}", timeout: {_TIMEOUT_MS}ms}}'
    return f'  {seen_from}-{host}-{family}: {{tcp: {tcp}, every: 100ms, from: "host={seen_from}"}}'


def answers(record: RunRecord, faults: list[FaultOutcome], name: str) -> set[bool]:
    """Whether the probe was answered while the fault was surely on, on every host that has it."""
    begin_ns = max(fault.active_ns + fault.clock_error_ns for fault in faults if fault.active_ns is not None)
    end_ns = min(fault.undo_begun_ns for fault in faults if fault.undo_begun_ns is not None)
    (series,) = [one for one in record.series if one.probe == name]
    asked = zip(series.sent_ns, series.ok, strict=True)
    during = [ok for sent_ns, ok in asked if begin_ns < sent_ns < end_ns - (_TIMEOUT_MS + 100) * 10**6]
    assert len(during) > 10
    return set(during)


def test_hosts_are_parted_as_planned_and_reach_everybody_else(tmp_path: Path) -> None:
    links = {
        (one, other, family): probe(one, other, family)
        for one in HOSTS
        for other in HOSTS
        for family in ("v4", "v6")
        if one != other
    }
    file = tmp_path / "parted.yaml"
    file.write_text(TEXT.replace("PROBES", "\n".join(links.values())))
    report = tmp_path / "report"
    report.mkdir()
    with Staging() as staging:
        code = run_experiment(staging, file, report, {})
    (path,) = report.glob("*.json")
    record = from_document(json.loads(path.read_text()))
    assert code == ExitCode.HELD, [(fault.name, fault.host, fault.explanation) for fault in record.faults]
    assert all(fault.proved and not fault.residue for fault in record.faults)
    by_name = {name: [one for one in record.faults if one.name == name] for name in ("front-from-apps", "apart")}
    assert {fault.host for fault in by_name["front-from-apps"]} == {"app-1", "app-2"}
    assert {fault.host for fault in by_name["apart"]} == set(HOSTS)
    first, second = ({link: sees(record, faults, link) for link in links} for faults in by_name.values())
    assert first == {link: "edge" not in link for link in links}
    assert second in [{link: alone not in link for link in links} for alone in HOSTS]


def sees(record: RunRecord, faults: list[FaultOutcome], link: tuple[str, str, str]) -> bool | None:
    """None: now it did, and now it did not."""
    found = answers(record, faults, "-".join(link))
    return found.pop() if len(found) == 1 else None
