"""`brownout explain`: there is something to say of everything that a message points to."""

import pytest
from brownout_agent.faults import catalogue
from brownout_controller.cli.explain import UnknownTopic, all_topics, explain
from brownout_controller.language.expectations import METRICS
from brownout_controller.language.experiment import ExperimentFile
from brownout_controller.language.findings import keys_of


def test_every_key_metric_fault_and_parameter_is_explained_in_a_sentence() -> None:
    topics = all_topics()
    wanted = {*keys_of(ExperimentFile), *METRICS, *catalogue(), "faults.for", "probes.http.url", "watch.haproxy.socket"}
    wanted |= {f"faults.with.{name}" for fault in catalogue().values() for name in fault.Parameters.model_fields}
    assert wanted <= topics.keys()
    assert [name for name, topic in topics.items() if len(topic.summary) < 5] == []


def test_a_fault_is_explained_with_its_parameters_and_who_ends_it() -> None:
    lines = explain("cpu.load").render().splitlines()
    assert lines[0] == f"cpu.load: {catalogue()['cpu.load'].summary}."
    assert any(line.startswith("  percent ") and line.endswith("Required.") for line in lines)
    assert any(line.startswith("  (ends by) ") and catalogue()["cpu.load"].reverts in line for line in lines)


def test_defaults_are_shown_as_people_write_them() -> None:
    parts = dict(explain("probes.http").parts)
    assert parts["timeout"].endswith("Default: 2s.")
    assert parts["tls_verify"].endswith("Default: true.")
    assert dict(explain("probes").parts)["every"].endswith("Default: 1s.")
    assert dict(explain("targets").parts)["pick"].endswith("Default: 1.")


def test_what_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownTopic, match=r"did you mean `faults\.for`\?"):
        explain("fautls.for")


def test_what_resembles_nothing_is_answered_with_a_beginning() -> None:
    with pytest.raises(UnknownTopic, match="begin with `brownout explain experiment`"):
        explain("quite something else altogether")
