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
  everybody: {selector: "role in (app, edge)", pick: all}
probes:
PROBES
steady_state: {before: 2s, after: 3s}
faults:
  - {name: front-from-apps, inject: network.partition, target: apps, with: {to: front}, at: 0s, for: 4s}
  - {name: apart, inject: network.partition, target: everybody, with: {shape: majority}, after: front-from-apps,
     wait: 2s, for: 4s}
"""
HOSTS = ("edge", "app-1", "app-2")
_SETTLED_NS = 600 * 10**6
"""A request that was on its way when the fault came is answered, or times out, a while after."""


def probe(seen_from: str, host: str, family: str) -> str:
    address = ADDRESSES[host].v4 if family == "v4" else f"[{ADDRESSES[host].v6}]"
    http = f'{{url: "http://{address}:{services.SHOP_PORT}/healthz", timeout: 300ms}}'
    return f'  {seen_from}-{host}-{family}: {{http: {http}, every: 100ms, from: "host={seen_from}"}}'


def answers(record: RunRecord, fault: FaultOutcome, name: str) -> set[bool]:
    """Whether the probe was answered while the fault was surely on."""
    assert fault.active_ns is not None
    assert fault.undo_begun_ns is not None
    begin_ns, end_ns = fault.active_ns + _SETTLED_NS, fault.undo_begun_ns - _SETTLED_NS
    (series,) = [one for one in record.series if one.probe == name]
    during = [ok for sent_ns, ok in zip(series.sent_ns, series.ok, strict=True) if begin_ns < sent_ns < end_ns]
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
    (alone,) = [
        one for one in HOSTS if all(sees(record, by_name["apart"][0], link) is (one not in link) for link in links)
    ]
    assert alone in HOSTS
    for link in links:
        assert sees(record, by_name["front-from-apps"][0], link) is ("edge" not in link), link


def sees(record: RunRecord, fault: FaultOutcome, link: tuple[str, str, str]) -> bool | None:
    """None: now it did, and now it did not."""
    found = answers(record, fault, "-".join(link))
    return found.pop() if len(found) == 1 else None
