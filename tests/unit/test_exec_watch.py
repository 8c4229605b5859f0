"""Who executed what, by the lines of the kernel's tracepoints."""

from tools.exec_watch import Lineage


def read(*lines: str) -> list[tuple[str, str]]:
    lineage = Lineage(10)
    for line in lines:
        lineage.read(f"          pytest-10      [001] ...1.  1234.567890: {line}")
    return lineage.executions


def fork(pid: int, child: int) -> str:
    return f"sched_process_fork: comm=a name pid={pid} child_comm=a name child_pid={child}"


def execution(file: str, pid: int, old: int = 0) -> str:
    return f"sched_process_exec: filename={file} pid={pid} old_pid={old or pid}"


def end(pid: int) -> str:
    return f"sched_process_exit: comm=a name pid={pid} prio=120 group_dead=true"


def test_a_program_is_executed_by_what_its_process_was_before() -> None:
    assert read(
        fork(10, 11), execution("/x/bin/pytest", 11), fork(11, 12), execution("/bin/sh", 12), execution("/bin/ls", 12)
    ) == [("/x/bin/pytest", ""), ("/bin/sh", "/x/bin/pytest"), ("/bin/ls", "/bin/sh")]


def test_a_thread_that_executes_gets_the_number_of_its_process() -> None:
    assert read(
        fork(10, 11), execution("/x/bin/python", 11), fork(11, 12), execution("/bin/a", 11, old=12), fork(11, 13),
        execution("/bin/b", 13),
    )[1:] == [("/bin/a", "/x/bin/python"), ("/bin/b", "/bin/a")]  # fmt: skip


def test_strangers_are_not_told_of_even_when_they_get_a_number_that_was_ours() -> None:
    assert read(execution("/bin/sh", 99), fork(99, 98), fork(10, 11), end(11), execution("/bin/sh", 11)) == []


def test_a_file_whose_name_looks_like_an_event_is_a_file() -> None:
    odd = "/tmp/x pid=1 old_pid=2"
    assert read(fork(10, 11), execution(odd, 11)) == [(odd, "")]
