"""Finding shells, in a text and in a trace of system calls."""

from pathlib import Path

import pytest

from tools.no_shell import Execution, Trace, is_ours, shells_in, shells_in_unit, shells_of_ours

PYTEST = ("/x/bin/python", "/x/bin/pytest")


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run('ls', shell=True)",
        "subprocess.Popen(argv, shell=flag)",
        "os.system('ls')",
        "os.popen('ls')",
        "subprocess.getoutput('ls')",
        "await asyncio.create_subprocess_shell('ls')",
        "run(['sh', '-c', 'ls'])",
        "run(('/bin/bash', '-c', text))",
        "argv = ['busybox', 'sh']",
    ],
)
def test_a_shell_is_found_however_it_is_written(source: str) -> None:
    assert [line for line, _ in shells_in(f"\n{source}\n")] == [2]


@pytest.mark.parametrize(
    "source",
    ["run(['ls', '-l'])", "run(argv, shell=False)", "text = 'sh -c'", "names = ['fish-market', 'sh']", "x = ['sh']"],
)
def test_what_is_no_shell_is_left_alone(source: str) -> None:
    assert list(shells_in(source)) == []


def test_a_unit_that_starts_a_shell_is_found() -> None:
    unit = "[Service]\nExecStart=/usr/bin/brownout-agent run\nExecStopPost=-/bin/sh -c 'true'\n"
    assert [line for line, _ in shells_in_unit(unit)] == [3]


def read(*lines: str) -> list[Execution]:
    trace = Trace()
    for line in lines:
        trace.read(line)
    return trace.executions


def test_a_shell_belongs_to_whose_program_forked_for_it() -> None:
    executions = read(
        '10 execve("/x/bin/pytest", ["/x/bin/python", "/x/bin/pytest"], 0x1 /* 3 vars */) = 0',
        "10 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID) = 11",
        "10 vfork() = 12",
        '11 execve("/usr/bin/initdb", ["initdb"], 0x1 /* 3 vars */) = 0',
        "11 clone3({flags=CLONE_VM|CLONE_VFORK}, 88) = 13",
        '13 execve("/bin/sh", ["sh", "-c", "postgres"], 0x1 /* 3 vars */) = 0',
        '12 execve("/bin/bash", ["bash", "-c", "ls"], 0x1 /* 3 vars */) = 0',
    )
    assert [one.program[0] for one in shells_of_ours(executions)] == ["/bin/bash"]


def test_a_child_that_runs_before_its_parents_fork_comes_back_has_the_right_parent() -> None:
    executions = read(
        '10 execve("/x/bin/pytest", ["/x/bin/python", "/x/bin/pytest"], 0x1 /* 3 vars */) = 0',
        "10 vfork( <unfinished ...>",
        '11 execve("/bin/dash", ["dash", "-c", "ls"], 0x1 /* 3 vars */ <unfinished ...>',
        "10 <... vfork resumed>) = 11",
        "11 <... execve resumed>) = 0",
    )
    assert executions[-1].by[1:] == PYTEST
    assert [one.program[0] for one in shells_of_ours(executions)] == ["/bin/dash"]


def test_an_execution_that_failed_is_none() -> None:
    assert (
        read('10 execve("/usr/local/bin/nft", ["nft"], 0x1 /* 3 vars */) = -1 ENOENT (No such file or directory)') == []
    )


def test_a_script_that_asks_for_a_shell_is_one(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text("#!/usr/bin/env bash\nexit 0\n")
    executions = [Execution((str(script), "wrapper"), PYTEST)]
    assert shells_of_ours(executions) == executions


@pytest.mark.parametrize(
    ("program", "ours"),
    [
        (("/x/bin/brownout-injector", "/x/bin/python", "/x/bin/brownout-injector", "serve"), True),
        (("/x/bin/python", "python", "-I", "-m", "brownout_agent.injector.holder", "cpu.load"), True),
        (("/usr/sbin/haproxy", "haproxy", "-f", "/tmp/h.cfg"), False),
        ((), False),
    ],
)
def test_programs_are_told_apart(program: tuple[str, ...], ours: bool) -> None:
    assert is_ours(program) is ours
