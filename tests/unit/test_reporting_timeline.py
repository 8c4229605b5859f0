"""The picture: lines break where nothing is known, labels never collide, and its size is bounded."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import pytest
from brownout_controller.analysis.verdict import judge
from brownout_controller.analysis.watched import StateStretch
from brownout_controller.record import RunRecord
from brownout_controller.reporting.axis import Axis, width_of
from brownout_controller.reporting.lanes import Block, latency_path, merged, watch_lane
from brownout_controller.reporting.timeline import close_up, draw_timeline

from tests.support.records import at, change, fault, lost_primary, record, series

AXIS = Axis(at(0), at(60), 100.0, 600.0)
"""Ten pixels a second."""


def parsed(run: RunRecord) -> ElementTree.Element:
    return ElementTree.fromstring(draw_timeline(run, judge(run)))


def found(root: ElementTree.Element, attribute: str) -> dict[str, ElementTree.Element]:
    return {element.attrib[attribute]: element for element in root.iter() if attribute in element.attrib}


def drawn_segments(path: str) -> list[tuple[float, float]]:
    """From and to (x) of every straight line that the path draws to the right."""
    points = re.findall(r"([ML])(\d+) ", path)
    return [(float(a), float(b)) for (_, a), (command, b) in pairwise(points) if command == "L"]


def test_the_line_breaks_at_an_outage_and_at_a_silence() -> None:
    path = latency_path(series(down=((20.0, 22.0),), silent=((40.0, 41.0),)), AXIS, lambda ms: ms)
    segments = drawn_segments(path)

    assert len(segments) > 500
    assert path.count("M") == 3
    assert max(b - a for a, b in segments) <= 1.0
    assert not [(a, b) for a, b in segments if a < 320 and b > 300]
    assert not [(a, b) for a, b in segments if a < 509 and b > 500]


def test_a_lone_answer_among_failures_is_a_dot() -> None:
    assert latency_path(series(end_s=3.0, down=((0.0, 1.0), (1.05, 3.0))), AXIS, lambda ms: ms) == "M110 4h0.1"


def test_a_long_run_is_reduced_to_two_points_a_column_and_keeps_its_extremes() -> None:
    axis = Axis(at(0), at(3600), 0.0, 100.0)
    spike = series(every_ms=50, end_s=3600, took_ms=lambda t: 900.0 if 1800.0 <= t < 1800.05 else 5.0)
    path = latency_path(spike, axis, lambda ms: ms)

    assert len(re.findall("[MLV]", path)) <= 2 * 101
    assert "V5" in path
    assert "900" in path


def test_flapping_does_not_make_the_picture_grow() -> None:
    steady = series(end_s=1800)
    flapping = replace(steady, ok=tuple(i % 2 == 0 for i in range(len(steady.ok))))
    run = record(series=(flapping,), ended_ns=at(1800))
    picture = draw_timeline(run, judge(run))

    assert len(judge(run).outages) == 9000
    assert picture.count("data-outage") <= 900
    assert len(picture) < 150_000


def test_what_touches_is_one_block_that_names_first_and_last() -> None:
    assert merged([(0.0, 2.0), (1.5, 3.0), (3.0, 4.0), (6.0, 8.0)]) == [Block(0.0, 4.0, 1, 3), Block(6.0, 8.0, 4, 4)]


def test_faults_probes_outages_watches_and_marks_can_all_be_found() -> None:
    root = parsed(lost_primary())

    assert set(found(root, "data-fault")) == set(found(root, "data-band")) == {"lose-app-1"}
    assert set(found(root, "data-vantage")) == {"controller", "edge"}
    assert set(found(root, "data-outage")) == {"1", "2"}
    assert set(found(root, "data-watch")) == {"lb:shop/app-1", "lb:shop/app-2"}
    assert set(found(root, "data-identity")) == {"app-1", "app-2"}
    assert set(found(root, "data-mark")) == {
        "injected", "first_user_error", "noticed", "moved", "steady", "undone", "failed_back",
    }  # fmt: skip


def test_outage_and_band_stand_where_and_as_wide_as_they_happened() -> None:
    root = parsed(lost_primary())
    band, outage = found(root, "data-band")["lose-app-1"], found(root, "data-outage")["1"]
    px_per_s = float(band.attrib["width"]) / 30.0

    assert float(outage.attrib["width"]) == pytest.approx(2.3 * px_per_s, abs=0.2)
    assert float(outage.attrib["x"]) - float(band.attrib["x"]) == pytest.approx(0.1 * px_per_s, abs=0.2)


def test_a_fault_of_a_moment_is_still_seen() -> None:
    root = parsed(record(faults=(fault(active_s=20.0, ended_s=20.01),)))

    assert float(found(root, "data-band")["lose-app-1"].attrib["width"]) == 4.0


def test_labels_of_marks_never_overlap() -> None:
    crowded = record(
        faults=tuple(fault(f"fault-{k}", 10.0 + k / 10, 59.0 + k / 100) for k in range(6)),
        series=(series(down=((10.2, 11.0),)),),
        events=(change(0.1, "", "UP"), change(10.9, "UP", "DOWN")),
    )
    boxes = []
    for group in found(parsed(crowded), "data-number").values():
        circle = next(one for one in group if one.tag.endswith("circle"))
        texts = [one for one in group if one.tag.endswith("text") and one.attrib["class"] == "ink"]
        left = float(texts[0].attrib["x"])
        boxes.append((float(circle.attrib["cy"]), left, left + width_of(texts[0].text or "")))

    assert len(boxes) > 15
    for row in {y for y, _, _ in boxes}:
        spans = sorted((left, right) for y, left, right in boxes if y == row)
        assert all(right < left for (_, right), (left, _) in pairwise(spans))


def test_a_limit_far_above_the_answers_does_not_flatten_them() -> None:
    runs = [record(expectations=(("checkout", expected),)) for expected in ("p95 < 10ms", "p95 < 30s")]
    near, far = (draw_timeline(run, judge(run)) for run in runs)

    assert "limit 10 ms" in near
    assert "limit 30.0 s is above" in far
    assert far.count('class="limit"') == 0


def test_states_are_told_apart_by_word_and_by_class() -> None:
    stretches = (
        StateStretch("UP", at(0), at(20)),
        StateStretch("DOWN", at(20), at(40)),
        StateStretch("?", at(40), at(60)),
    )
    markup = watch_lane("lb", "shop/app-1", stretches, AXIS).markup

    assert [one in markup for one in ("state-good", "state-bad", ">UP<", ">DOWN<")] == [True] * 4


def test_the_close_up_spans_the_failover_and_draws_only_its_marks() -> None:
    run = lost_primary()
    findings = judge(run)
    window = close_up(findings)

    assert window is not None
    assert window[0] < at(20.0) < at(22.45) < window[1]
    root = ElementTree.fromstring(draw_timeline(run, findings, window, "c"))
    assert "undone" not in found(root, "data-mark")
    assert "moved" in found(root, "data-mark")


def test_a_run_with_nothing_in_it_is_drawn() -> None:
    empty = record(faults=(), series=(), ended_ns=at(0))

    assert parsed(empty).tag.endswith("svg")
    assert close_up(judge(empty)) is None


def test_colours_stand_as_attributes_so_that_the_picture_is_right_without_a_style_sheet() -> None:
    for element in parsed(lost_primary()).iter():
        tag = element.tag.rpartition("}")[2]
        if tag in {"rect", "circle", "text"}:
            assert "fill" in element.attrib, ElementTree.tostring(element)
        if tag in {"line", "path"}:
            assert "stroke" in element.attrib, ElementTree.tostring(element)
