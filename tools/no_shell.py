"""No shell anywhere: neither in what we wrote, nor in what runs.

.venv/bin/python tools/no_shell.py                    looks through the code of the three distributions and the units
.venv/bin/python tools/no_shell.py --watch COMMAND..  runs a command as root, like `make test`, and names every shell
                                                      that a program of this environment executed (exec_watch.py)

"Ours" goes by lineage: a process runs the program that it, or the process that forked it, executed last. A shell that
HAProxy or initdb starts is theirs, however they themselves were started. A single run is looked at more closely by
strace(1), in the tests: `trace`.
"""

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("agent/src", "controller/src", "protos/src", "tools")
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "csh", "tcsh", "fish", "busybox"})
_CALLS = frozenset({"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"})
_CALLS_ANYWHERE = frozenset({"create_subprocess_shell", "subprocess_shell"})


# ---- what we wrote ----------------------------------------------------------------------------------------------


def shells_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of every use of a shell in a Python text. Pure."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in _CALLS or name.rpartition(".")[2] in _CALLS_ANYWHERE:
                yield node.lineno, name
            for keyword in node.keywords:
                if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                    yield node.lineno, f"{name}(shell=...)"
        elif isinstance(node, ast.List | ast.Tuple) and node.elts and isinstance(node.elts[0], ast.Constant):
            first = node.elts[0].value
            if isinstance(first, str) and Path(first).name in SHELLS and len(node.elts) > 1:
                yield node.lineno, ast.unparse(node)


def shells_in_unit(text: str) -> Iterator[tuple[int, str]]:
    """(line, what) of every Exec line of a systemd unit that names a shell. Pure."""
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, command = line.partition("=")
        if key.startswith("Exec") and any(Path(word.lstrip("@-:+!")).name in SHELLS for word in command.split()):
            yield number, line


def _written() -> Iterator[str]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, what in shells_in(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(ROOT)}:{line}: {what}"
    for path in sorted((ROOT / "deploy").rglob("*.service")):
        for line, what in shells_in_unit(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(ROOT)}:{line}: {what}"


# ---- what runs --------------------------------------------------------------------------------------------------

_LINE = re.compile(r"(?P<pid>\d+) +(?:<\.\.\. (?P<resumed>\w+) resumed>)?(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)")
_RESULT = re.compile(r"= (?P<result>-?\d+)(?: .*)?$")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Execution:
    """A program that was executed, and the program that did it."""

    program: tuple[str, ...]
    by: tuple[str, ...]


@dataclass
class Trace:
    """Reads the lines of `strace -f -e trace=execve,execveat,clone,clone3,fork,vfork -s 200`. No I/O."""

    executions: list[Execution] = field(default_factory=list)
    _programs: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """What each process runs: what it, or who forked it, executed last; empty for strace's own child at first."""
    _begun: dict[int, str] = field(default_factory=dict)
    _waiting: dict[int, list[int | tuple[str, ...]]] = field(default_factory=dict)
    """Forks and executions of a process whose parent's fork has not come back yet: vfork(2) lets the child go first."""

    def read(self, line: str) -> None:
        if (found := _LINE.match(line)) is None:
            return
        pid, rest = int(found["pid"]), found["rest"]
        if not self._programs:
            self._programs[pid] = ()
        if rest.endswith("<unfinished ...>"):
            self._begun[pid] = rest.removesuffix("<unfinished ...>")
            return
        if found["resumed"]:
            rest = self._begun.pop(pid, "") + rest
        call, result = _CALL.match(rest), _RESULT.search(rest)
        if call is None or result is None or int(result["result"]) < 0:
            return
        is_execution = call["name"].startswith("exec")
        self._take(pid, tuple(_STRING.findall(call["arguments"])) if is_execution else int(result["result"]))

    def _take(self, pid: int, event: int | tuple[str, ...]) -> None:
        """A child that was forked, or a program that was executed."""
        if pid not in self._programs:
            self._waiting.setdefault(pid, []).append(event)
        elif isinstance(event, tuple):
            self.executions.append(Execution(event, self._programs[pid]))
            self._programs[pid] = event
        else:
            self._programs[event] = self._programs[pid]
            for waiting in self._waiting.pop(event, []):
                self._take(event, waiting)


def is_ours(program: tuple[str, ...]) -> bool:
    """Whether a program is one of ours: a console script, a module, or Python that runs the tests. Pure."""
    names = {Path(word).name for word in program[:4]}
    modules = any(word.startswith("brownout_") for word in program)
    return modules or not names.isdisjoint({"brownout", "brownout-agent", "brownout-injector", "pytest"})


def is_shell(program: tuple[str, ...]) -> bool:
    """Whether a shell runs when this is executed: it is one, or a script that asks for one."""
    path = Path(program[0])
    if path.name in SHELLS:
        return True
    try:
        with path.open("rb") as file:
            first = file.readline(256)
    except OSError:
        return False
    words = first.removeprefix(b"#!").decode(errors="replace").split() if first.startswith(b"#!") else []
    return any(Path(word).name in SHELLS for word in words[:2])


def shells_of_ours(executions: Iterable[Execution]) -> list[Execution]:
    """Every shell that a program of ours executed."""
    return [one for one in executions if is_ours(one.by) and is_shell(one.program)]


def trace(argv: list[str]) -> tuple[int, list[Execution]]:
    """Run a command under strace; its exit code, and every program that was executed below it.

    Raises:
        FileNotFoundError: there is no strace.
    """
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "200", "-e", "signal=none", "-o", log.name]
        strace += ["-e", "trace=execve,execveat,clone,clone3,fork,vfork"]
        code = subprocess.run([*strace, "--", *argv], check=False).returncode
        reading = Trace()
        for line in log:
            reading.read(line.rstrip("\n"))
    return code, reading.executions


def main() -> None:
    """Check, or watch; exit code 1 when a shell was found, or the command's own."""
    code = 0
    if sys.argv[1:2] == ["--watch"]:
        import exec_watch  # noqa: PLC0415 - it stands beside this program, not where the tests import from

        code, executions = exec_watch.watch(sys.argv[2:])
        by_ours = [(file, by) for file, by in executions if (ROOT / by).parent == Path(sys.executable).parent]
        found = [f"{file}\n    executed by {by}" for file, by in by_ours if is_shell((file,))]
        summary = f"exit code {code}; {len(executions)} programs executed, {len(by_ours)} of them by ours"
        sys.stdout.write(f"{summary}; {len(found)} shells\n")
    else:
        found = list(_written())
    sys.stdout.writelines(f"{line}\n" for line in found)
    raise SystemExit(1 if found else code)


if __name__ == "__main__":
    main()
