"""What an agent may not say, and what becomes of texts that mean harm."""

from collections.abc import Callable

import pytest
from brownout_controller.fleet.limits import TEXT_CHARACTERS
from brownout_controller.fleet.screening import Absurd, named_id, screen
from brownout_protos.v1 import fault_pb2, fleet_pb2

Message = fleet_pb2.AgentMessage


def samples(**more: object) -> fleet_pb2.ProbeSamples:
    good: dict[str, object] = {
        "observer_id": "o", "sent_boottime_ns": [1, 2], "took_us": [1, 2], "ok": [True, False], "outcome": [0, 1],
        "identity": [0, 0], "outcomes": ["200", "500"], "identities": [""],
    }  # fmt: skip
    return fleet_pb2.ProbeSamples(**{**good, **more})  # type: ignore[arg-type]


def unknown_enum() -> Message:
    """State 99, as a later version might send it: the wire carries what the class would not take."""
    return Message.FromString(Message(report=fault_pb2.FaultReport.FromString(b"\x10\x63")).SerializeToString())


ABSURD: dict[str, Callable[[], Message]] = {
    "has no body": Message,
    "FaultReport.state: 99": unknown_enum,
    "a negative time": lambda: Message(report=fault_pb2.FaultReport(at_boottime_ns=-1)),
    "sent_boottime_ns: a negative time": lambda: Message(samples=samples(sent_boottime_ns=[1, -2])),
    "columns of unequal length": lambda: Message(samples=samples(ok=[True])),
    "outcome: an index beyond": lambda: Message(samples=samples(outcome=[0, 2])),
    "identity: an index beyond": lambda: Message(samples=samples(identity=[0, 1])),
    "no host name": lambda: Message(hello=fleet_pb2.Hello(host="../../etc")),
    "at most 63": lambda: Message(hello=fleet_pb2.Hello(host="a" * 64)),
    "65 of them": lambda: Message(hello=fleet_pb2.Hello(host="a", labels={f"k{n}": "v" for n in range(65)})),
    "not a label": lambda: Message(hello=fleet_pb2.Hello(host="a", labels={"role": "\x1b[2J"})),
    "one kind twice": lambda: Message(
        hello=fleet_pb2.Hello(host="a", capabilities=[fault_pb2.Capability(kind="cpu.load")] * 2)
    ),
}


@pytest.mark.parametrize("reason", ABSURD)
def test_a_valid_message_with_absurd_fields_is_refused_by_the_field(reason: str) -> None:
    with pytest.raises(Absurd, match=reason):
        screen(ABSURD[reason]())


def test_what_an_honest_agent_says_is_left_as_it_is() -> None:
    hello = fleet_pb2.Hello(host="app-1.shop", labels={"role": "app"}, policy="allows: café, 日本", trusts="ab")
    for message in (Message(hello=hello), Message(samples=samples())):
        before = message.SerializeToString(deterministic=True)
        screen(message)
        assert message.SerializeToString(deterministic=True) == before


def test_text_of_a_result_cannot_move_a_cursor_and_does_not_fill_the_store() -> None:
    report = fault_pb2.FaultReport(
        message="\x1b[2J<script>\u202e", residue=["x" * 250_000, "fine"], effect=fault_pb2.Effect(unit="\x07")
    )
    message = Message(report=report)
    screen(message)
    assert message.report.message == "\\x1b[2J<script>\\u202e"
    assert len(message.report.residue[0]) == TEXT_CHARACTERS
    assert message.report.residue[0].endswith("[cut off]")
    assert message.report.residue[1] == "fine"
    assert message.report.effect.unit == "\\x07"


def test_texts_inside_maps_of_messages_are_made_harmless_as_well() -> None:
    sections = {"nft": fault_pb2.TextList(items=["\x1b]0;owned\x07"])}
    message = Message(fingerprint=fault_pb2.Fingerprint(fingerprint_id="f", sections=sections))
    screen(message)
    assert message.fingerprint.sections["nft"].items[0] == "\\x1b]0;owned\\x07"


@pytest.mark.parametrize(
    ("message", "order"),
    [
        (Message(report=fault_pb2.FaultReport(fault_id="f-1")), "f-1"),
        (Message(reply=fault_pb2.OrderReply(fault_id="f-2")), "f-2"),
        (Message(watch=fleet_pb2.WatchEvent(observer_id="o-1")), "o-1"),
        (Message(clock=fleet_pb2.ClockReply(number=1)), ""),
        (Message(), ""),
    ],
)
def test_the_order_that_a_message_is_about_is_known_by_its_id(message: Message, order: str) -> None:
    assert named_id(message) == order
