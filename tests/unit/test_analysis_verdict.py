"""The verdict's order: what did not happen is never a pass, and an undo that is not confirmed is never quiet."""

from typing import Any

import pytest
from brownout_controller.analysis.verdict import judge
from brownout_controller.exit_codes import EXIT_CODE_OF_VERDICT, ExitCode
from brownout_controller.record import Verdict

from tests.support.records import at, fault, lost_primary, record, series

MET = (("checkout", "outage < 5s"),)
HURT = {"expectations": MET, "series": (series(down=((20.0, 30.0),)),)}


def test_a_proved_fault_and_met_expectations_are_held() -> None:
    findings = judge(record(expectations=MET))

    assert (findings.verdict, findings.exit_code) == (Verdict.HELD, 0)
    assert findings.headline == "the expectation held; no request of any probe failed"
    assert findings.effects_summary == "1 of 1 fault proved"
    assert findings.undo_summary == "1 of 1 fault undone and verified"


def test_a_missed_expectation_deviates() -> None:
    findings = judge(record(**HURT))

    assert (findings.verdict, findings.exit_code) == (Verdict.DEVIATED, 10)
    assert findings.headline == ("checkout missed `outage < 5s`: 10.0 s, 14:02:00.0 -> 14:02:10.0, during lose-app-1")


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        ({"proved": False, "explanation": "no packet matched: nobody talked to 10.0.0.9"}, "was not proved on app-1"),
        ({"active_s": None, "ended_s": None, "proved": False, "undo": "not_needed"}, "was not injected on app-1"),
    ],
)
def test_a_fault_that_was_not_proved_or_refused_turns_held_into_inconclusive(outcome: dict[str, Any], why: str) -> None:
    findings = judge(record(expectations=MET, faults=(fault(**outcome),)))

    assert (findings.verdict, findings.exit_code) == (Verdict.INCONCLUSIVE, 14)
    assert why in findings.headline


def test_one_unproved_host_of_two_is_enough_for_doubt() -> None:
    findings = judge(record(expectations=MET, faults=(fault(), fault(host="app-2", proved=False))))

    assert findings.verdict is Verdict.INCONCLUSIVE
    assert findings.effects_summary == "1 of 2 faults proved"


def test_users_who_were_hurt_outweigh_a_fault_that_was_not_proved() -> None:
    findings = judge(record(**HURT, faults=(fault(proved=False, explanation="counters unreadable"),)))

    assert findings.verdict is Verdict.DEVIATED
    assert any("was not proved" in reason for reason in findings.reasons)


def test_a_run_without_any_fault_put_nothing_to_the_test() -> None:
    assert judge(record(expectations=MET, faults=())).verdict is Verdict.INCONCLUSIVE


def test_probes_that_never_sampled_conclude_nothing_even_without_an_expectation() -> None:
    assert judge(record(series=(series(end_s=0.0),))).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("stopped_by", "verdict", "exit_code"),
    [
        ("guard", Verdict.ABORTED, 11),
        ("person", Verdict.HALTED, 12),
        ("error", Verdict.ERRORED, 1),
        ("something new", Verdict.ERRORED, 1),
    ],
)
def test_a_stopped_run_is_named_after_who_stopped_it_even_if_expectations_were_missed(
    stopped_by: str, verdict: Verdict, exit_code: int
) -> None:
    findings = judge(record(**HURT, stopped_by=stopped_by, stop_reason="errors > 50 for 10s"))

    assert (findings.verdict, findings.exit_code) == (verdict, exit_code)
    assert "errors > 50 for 10s" in findings.headline


@pytest.mark.parametrize("undo", ["residue", "unknown"])
@pytest.mark.parametrize(
    ("other", "verdict"),
    [({"expectations": MET}, Verdict.HELD), (HURT, Verdict.DEVIATED), ({"stopped_by": "person"}, Verdict.HALTED)],
)
def test_an_undo_that_is_not_confirmed_takes_the_exit_code_and_leaves_the_verdict(
    undo: str, other: dict[str, Any], verdict: Verdict
) -> None:
    left = fault(undo=undo, residue=("table inet brownout-3f",))
    findings = judge(record(**other, faults=(left,)))

    assert (findings.verdict, findings.exit_code) == (verdict, ExitCode.UNDO_NOT_CONFIRMED)
    assert findings.headline.startswith("UNDO NOT CONFIRMED for lose-app-1 on app-1: on app-1 type `brownout-injector")
    assert any("left: table inet brownout-3f" in reason for reason in findings.reasons)
    assert "NOT CONFIRMED on app-1" in findings.undo_summary


def test_a_word_for_undo_that_nobody_knows_is_not_taken_for_clean() -> None:
    assert judge(record(faults=(fault(undo="probably"),))).exit_code == ExitCode.UNDO_NOT_CONFIRMED


def test_reasons_tell_the_failover_in_one_sentence() -> None:
    assert judge(lost_primary()).reasons[-1] == (
        "lose-app-1: noticed after 1.60 s, traffic moved after 2.45 s, steady again after 2.40 s (checkout from edge)"
    )


def test_a_run_that_ended_before_anything_happened_is_judged_without_an_error() -> None:
    findings = judge(
        record(faults=(), series=(), events=(), ended_ns=at(0), stopped_by="error", stop_reason="agent refused")
    )

    assert findings.exit_code == ExitCode.INTERNAL_ERROR


def test_every_verdict_has_its_own_exit_code() -> None:
    assert {verdict: int(code) for verdict, code in EXIT_CODE_OF_VERDICT.items()} == {
        Verdict.HELD: 0,
        Verdict.ERRORED: 1,
        Verdict.DEVIATED: 10,
        Verdict.ABORTED: 11,
        Verdict.HALTED: 12,
        Verdict.INCONCLUSIVE: 14,
    }
