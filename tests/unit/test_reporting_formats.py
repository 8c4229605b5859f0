"""HTML, Markdown, JSON and the terminal: the same facts, nothing lost, and nothing of others taken for markup."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from brownout_controller.analysis.verdict import judge
from brownout_controller.record import HostResidue, ResidueState, RunRecord
from brownout_controller.reporting.console import summary
from brownout_controller.reporting.document import from_document, to_document, to_json
from brownout_controller.reporting.facts import limits, timeline_rows
from brownout_controller.reporting.html import to_html
from brownout_controller.reporting.markdown import escape, to_markdown
from brownout_controller.reporting.visible import visible
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.records import at, change, fault, lost_primary, record, series

HOSTILE = "\x1b[2J<script>alert(1)</script>\u202etxt.exe|`*[x](http://evil.test)\x00\x9b31m"


AUDITED = HostResidue(
    "app-1", ResidueState.UNKNOWN, (), ("+ mounts: /mnt",), ("nft: Operation not permitted",)
)  # fmt: skip


def hostile() -> RunRecord:
    """Every text that a host, a file or a person brings in is an attack."""
    return record(
        run_id=HOSTILE,
        name=HOSTILE,
        hypothesis=HOSTILE,
        source=f"name: {HOSTILE}\nnext: line",
        operator=HOSTILE,
        controller_host=HOSTILE,
        versions={HOSTILE: HOSTILE},
        hosts=({"name": HOSTILE},),
        stop_reason=HOSTILE,
        series=(
            series(HOSTILE, HOSTILE, who=lambda _: HOSTILE, down=((20.0, 22.0),), outcome=HOSTILE),
        ),
        faults=(
            fault(
                HOSTILE, kind=HOSTILE, host=HOSTILE, explanation=HOSTILE, parameters={HOSTILE: HOSTILE}, unit=HOSTILE,
                undo="residue", residue=(HOSTILE,),
            ),
        ),
        residue=(HostResidue(HOSTILE, ResidueState.RESIDUE, (HOSTILE,), (HOSTILE,), (HOSTILE,)),),
        events=(change(1.0, "", HOSTILE, HOSTILE), change(21.0, "UP", HOSTILE, HOSTILE)),
    )  # fmt: skip


def on_terminal(run: RunRecord, *, width: int = 80, ascii_only: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(summary(run, judge(run), ["r.html"], ascii_only=ascii_only))
    return out.getvalue()


def test_a_document_gives_back_the_record_it_was_made_from() -> None:
    run = lost_primary()

    assert from_document(json.loads(to_json(run, judge(run)))) == run


def test_the_reports_made_from_a_document_are_those_of_the_run() -> None:
    run = lost_primary()
    again = from_document(json.loads(to_json(run, judge(run))))

    assert to_html(again, judge(again)) == to_html(run, judge(run))


def test_a_document_has_the_keys_that_others_rely_on() -> None:
    run = lost_primary()
    document = to_document(run, judge(run))

    assert document["verdict"] == "deviated"
    assert document["exit_code"] == 10
    assert (document["residue"]["state"], document["residue"]["faults"]) == ("clean", [])
    assert [host["host"] for host in document["residue"]["hosts"]] == ["app-1"]
    assert to_document(record(), judge(record()))["residue"] == {"state": "not_audited", "hosts": [], "faults": []}
    assert document["effects"][0]["achieved"] == 100.0
    assert document["anatomy"][0]["marks"]["moved"]["at_ns"] == at(22.4)
    assert document["anatomy"][0]["durations_ms"]["time_to_failover"] == {
        "value": 2400.0,
        "low": 2298.0,
        "high": 2586.0,
    }
    assert document["expectations"][1]["measured"]["low"] == 2300.0


def test_a_document_holds_no_nan_and_no_infinity() -> None:
    run = record(series=(series(down=((20.0, 99.0),)),), faults=(fault(achieved=float("nan")),))
    text = to_json(run, judge(run))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(text, parse_constant=refuse)
    assert document["outages"][0]["duration_ms"]["high"] is None
    assert document["effects"][0]["achieved"] is None


def test_a_document_names_what_is_left_behind() -> None:
    run = record(faults=(fault(undo="residue", residue=("table inet brownout-3f",)),), residue=(AUDITED,))

    assert to_document(run, judge(run))["residue"] == {
        "state": "residue",
        "hosts": [
            {
                "host": "app-1",
                "state": "unknown",
                "left": [],
                "changed_meanwhile": ["+ mounts: /mnt"],
                "unread": ["nft: Operation not permitted"],
            }
        ],
        "faults": [{"fault": "lose-app-1", "host": "app-1", "undo": "residue", "left": ["table inet brownout-3f"]}],
    }


@pytest.mark.parametrize(
    ("state", "code"), [(ResidueState.CLEAN, 0), (ResidueState.UNKNOWN, 13), (ResidueState.RESIDUE, 13)]
)
def test_every_report_shows_the_audit_of_each_host(state: ResidueState, code: int) -> None:
    run = record(residue=(replace(AUDITED, state=state, left=("+ nft: table inet brownout-3f",)),))

    assert judge(run).exit_code == code
    for page in (to_html(run, judge(run)), to_markdown(run, judge(run)), on_terminal(run, width=200)):
        assert "nft: table inet brownout-3f" in page
        assert "Operation not permitted" in page
        assert "mounts: /mnt" in page or "1 difference that no fault of this run could have made" in page


def test_a_record_of_before_there_was_an_audit_still_loads() -> None:
    document = to_document(record(), judge(record()))
    del document["record"]["residue"]

    assert from_document(document) == record()


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({}, "`schema` is None"),
        ({"schema": "brownout.run/1"}, "not a complete run"),
        ({"schema": "brownout.run/1", "record": {"run_id": "42"}}, "record.name: Field required"),
    ],
)
def test_what_is_no_document_is_refused_with_what_is_wrong(document: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match="not a") as refusal:
        from_document(document)
    assert complaint in str(refusal.value)


def test_hostile_text_stays_text_in_html() -> None:
    page = to_html(hostile(), judge(hostile()))

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for character in "\x1b\x00\x9b\u202e":
        assert character not in page
    assert "\\x1b[2J" in page


def test_hostile_text_stays_text_in_markdown() -> None:
    page = to_markdown(hostile(), judge(hostile()))

    assert "<script" not in page.replace("\\<", "")
    assert "[x](" not in page
    for character in "\x1b\x00\x9b\u202e":
        assert character not in page
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in {4, 5, 6, 9, 10}


def test_hostile_text_cannot_drive_the_terminal() -> None:
    shown = on_terminal(hostile(), width=400)

    assert "\\x1b[2J<script>" in shown
    for character in "\x1b\x00\x9b\u202e":
        assert character not in shown


@given(st.text())
def test_visible_text_has_no_character_that_hides_or_moves(text: str) -> None:
    shown = visible(text)

    assert shown.isprintable()
    assert visible(shown) == shown


@given(st.text())
def test_a_markdown_cell_never_ends_early(text: str) -> None:
    escaped = escape(text)

    assert "\n" not in escaped
    assert "|" not in escaped.replace("\\\\", "").replace("\\|", "")


def test_the_terminal_gets_the_transcript_at_80_columns_without_colour() -> None:
    shown = on_terminal(lost_primary())

    assert shown.splitlines()[0].startswith("█ DEVIATED  run 42  1 min 0 s  checkout-survives-app-loss")
    assert "✗ deviated  checkout  availability >= 99%  96% (576 of 600 probes)" in shown
    assert "✓ held      lb        time_to_detect < 3s" in shown
    assert "undo: 1 of 1 fault undone and verified" in shown
    assert "report: r.html" in shown
    assert "[exit 10]" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "\x1b" not in shown


def test_a_terminal_without_unicode_gets_ascii_only() -> None:
    on_terminal(lost_primary(), ascii_only=True).encode("ascii")


def test_markdown_leads_with_the_verdict_and_holds_every_section() -> None:
    page = to_markdown(lost_primary(), judge(lost_primary()))

    assert page.startswith("## DEVIATED: checkout missed")
    assert "| checkout | outage \\< 5s | 2.40 s (2.30 s to 2.50 s) | held |" in page
    for section in ("Expected", "Timeline", "Failover anatomy", "Impact", "Faults", "Limits", "Reproduce", "Action"):
        assert f"### {section}" in page


def test_limits_name_resolution_missing_samples_and_clocks() -> None:
    assert limits(lost_primary()) == (
        "checkout from controller: asked every 100 ms, which is the resolution of what it saw.",
        "checkout from controller: 10 answers missing in 1 gap, the longest 1.10 s; counted as unknown, never as good.",
        "checkout from edge: asked every 100 ms, which is the resolution of what it saw.",
        "Clocks agree within 2.0 ms (worst: app-1); included in every range.",
    )


def test_timeline_rows_stand_in_order_and_carry_the_numbers_of_the_picture() -> None:
    run = lost_primary()
    rows = timeline_rows(run, judge(run))

    assert [row.number for row in rows if row.number] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.what for row in rows][:3] == ["run began", "lose-app-1 ordered", "lose-app-1 in effect"]
    assert not [row for row in rows if "-> UP" in row.what and row.time < "14:02:00"], "a first look is no change"


def test_the_page_may_load_nothing_and_run_nothing() -> None:
    page = to_html(lost_primary(), judge(lost_primary()))

    assert "default-src 'none'; style-src 'sha256-" in page
    assert "unsafe" not in page
    for forbidden in ("<script", "<link", "<img", "<iframe", "@import", "url(http", " style="):
        assert forbidden not in page
