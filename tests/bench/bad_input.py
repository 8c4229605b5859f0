"""Run every test that the catalogue of bad input names, and write docs/bad-input.md. Fails where one does not pass."""

import sys
from collections.abc import Iterable

import pytest

from tests.support.bad_input import DOCUMENT, ROOT, document, read_cases


class _Results:
    """The worst word that was heard of each function, over all of its parameters."""

    def __init__(self, names: Iterable[str]) -> None:
        self.words = dict.fromkeys(names, "not run")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.outcome == "failed" or (report.outcome == "skipped" and self.words[name] != "failed"):
            self.words[name] = report.outcome
        elif report.when == "call" and self.words[name] == "not run":
            self.words[name] = "passed"


def main() -> int:
    cases = read_cases()
    results = _Results(name for case in cases for name in case.tests)
    argv = ["-q", "--tb=short", "--rootdir", str(ROOT), *results.words]
    pytest.main(argv, plugins=[results])
    DOCUMENT.write_text(document(cases, results.words))
    bad = {name: word for name, word in results.words.items() if word != "passed"}
    for name, word in bad.items():
        print(f"{word}: {name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
