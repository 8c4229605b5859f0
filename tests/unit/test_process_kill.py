"""What process.kill brings back: told by what was seen of the processes before they are killed."""

from dataclasses import replace

import pytest
from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.process_kill import _comebacks
from brownout_agent.faults.process_match import Process
from brownout_agent.kernel.processes import ProcessKey

SERVER = Process(ProcessKey(7, 70), "server", "S", 1, 0, ("server", "--port", "1"), "/usr/sbin/server")


def test_a_chosen_process_is_one_of_its_program() -> None:
    (comeback,) = _comebacks([SERVER], [SERVER, replace(SERVER, key=ProcessKey(8, 80))], with_image=False)
    assert (comeback["exe"], comeback["before"]) == ("/usr/sbin/server", 2)


@pytest.mark.parametrize(
    "now",
    [[], [replace(SERVER, exe="/bin/other")], [replace(SERVER, key=ProcessKey(7, 71))], [replace(SERVER, argv=())]],
    ids=["gone", "another program", "another process", "no arguments yet"],
)
def test_one_that_is_not_what_was_chosen_any_more_is_refused_rather_than_not_brought_back(now: list[Process]) -> None:
    with pytest.raises(Refusal, match="ended, or became another program"):
        _comebacks([SERVER], now, with_image=False)


def test_a_title_that_changes_meanwhile_is_no_other_program() -> None:
    (comeback,) = _comebacks([SERVER], [replace(SERVER, argv=("server: idle",))], with_image=False)
    assert comeback["before"] == 1
