"""What `process.crash_loop` takes. No kernel."""

import pytest
from brownout_agent.faults.process_crash_loop import CrashLoopParameters
from pydantic import ValidationError


def test_a_beat_is_a_duration_and_five_seconds_when_left_out() -> None:
    assert CrashLoopParameters.model_validate({"process": "nginx"}).every_s == 5
    assert CrashLoopParameters.model_validate({"process": "nginx", "every": "1m30s"}).every_s == 90


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"pid": 7}, "what comes back has another pid"),
        ({"process": "nginx", "pid": 7}, "what comes back has another pid"),
        ({}, "which process?"),
        ({"process": "nginx", "every": "500ms"}, "greater than or equal to 1000"),
        ({"process": "nginx", "every": 5}, "did you mean 5s?"),
        ({"process": "nginx", "signal": "STOP"}, "Input should be 'KILL'"),
    ],
)
def test_what_could_be_no_loop_is_refused(given: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why.replace("?", r"\?")):
        CrashLoopParameters.model_validate(given)
