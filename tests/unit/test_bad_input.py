"""The catalogue of bad input is whole, its page is the one that was made from it, and what has no other test."""

from collections.abc import Iterator

import pytest
from brownout_controller.language import InvalidExperiment, parse_experiment
from brownout_protos.v1 import fault_pb2, fleet_pb2, injector_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.support.bad_input import DOCUMENT, is_a_test, read_cases


def test_every_case_has_its_number_and_tests_that_exist() -> None:
    cases = read_cases()
    assert [case.number for case in cases] == list(range(1, 74))
    named = {name for case in cases for name in case.tests}
    assert {name for name in named if not is_a_test(name)} == set()
    assert all(case.tests for case in cases)
    assert not is_a_test("tests/unit/test_bad_input.py::test_that_nobody_wrote")


def test_the_page_shows_every_case_with_its_tests() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(read_cases()), "next: make bench-bad-input"
    for case, row in zip(read_cases(), rows, strict=True):
        assert row.startswith(f"| {case.number} | "), row
        assert all(name.removeprefix("tests/") in row for name in case.tests), (
            f"case {case.number}: make bench-bad-input"
        )
        assert "**" not in row, f"case {case.number} is not proved"


NAMES = ['"../etc"', '"a\\0b"', '"a\\nb"', '"a\\u202eb"', "a" * 64, "a" * 10_000, "🎉", "-", "''", "A", "a_b", "a b"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    text = f"version: 1\nname: {name}\nfaults:\n  - {{inject: cpu.load, target: a=b, for: 1s, with: {{percent: 1}}}}\n"
    with pytest.raises(InvalidExperiment) as caught:
        parse_experiment(text)
    assert {found.line for found in caught.value.diagnostics} == {2}
    parse_experiment(text.replace(name, "a-1", 1))


def messages() -> Iterator[Descriptor]:
    for file in (fault_pb2, fleet_pb2, injector_pb2):
        yield from file.DESCRIPTOR.message_types_by_name.values()


@pytest.mark.parametrize("top", list(messages()), ids=lambda top: str(top.name))
def test_no_message_holds_itself_or_anything(top: Descriptor) -> None:
    def below(message: Descriptor, above: tuple[str, ...]) -> None:
        assert message.full_name not in above, f"{message.full_name} holds itself"
        assert message.full_name != "google.protobuf.Any"
        for field in message.fields:
            if field.type in {FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP}:
                below(field.message_type, (*above, message.full_name))

    below(top, ())
