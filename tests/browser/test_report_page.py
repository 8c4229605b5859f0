"""The report in a real browser, opened from disk: no request, no script, accessible, and the picture is there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from brownout_controller.analysis.verdict import judge
from brownout_controller.record import RunRecord
from brownout_controller.reporting.html import to_html
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from tests.support.records import change, fault, lost_primary, record, series

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('svg [data-mark]')].map(mark => ({
    picture: mark.closest('svg'), name: mark.dataset.mark, box: mark.querySelector('text.ink').getBoundingClientRect(),
  }));
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => a.picture === b.picture
      && a.box.left < b.box.right && b.box.left < a.box.right
      && a.box.top < b.box.bottom && b.box.top < a.box.bottom).map(b => `${a.name} on ${b.name}`));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Report:
    """A report as a file, open in a page that notes every request and every complaint."""

    def __init__(self, browser: Browser, file: Path, run: RunRecord, *, width: int = 1280, scheme: str = "light"):
        file.write_text(to_html(run, judge(run)), encoding="utf-8")
        self.url = file.as_uri()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
        )
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._note_dialog)
        self.page.goto(self.url, wait_until="networkidle")

    def _note_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(dialog.message)
        dialog.dismiss()


def test_the_file_is_the_only_request_and_the_browser_complains_of_nothing(browser: Browser, tmp_path: Path) -> None:
    report = Report(browser, tmp_path / "report.html", lost_primary())

    assert report.requests == [report.url]
    assert report.complaints == []
    assert report.page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert report.page.evaluate("document.scripts.length") == 0


def test_the_policy_would_stop_a_request_that_somebody_smuggled_in(browser: Browser, tmp_path: Path) -> None:
    report = Report(browser, tmp_path / "report.html", lost_primary())
    with report.page.expect_event("requestfailed") as failed:
        report.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://evil.test/x.png\">')")

    assert failed.value.failure == "csp"
    assert any("Content Security Policy" in complaint for complaint in report.complaints)


def test_the_style_sheet_passes_the_page_s_own_policy(browser: Browser, tmp_path: Path) -> None:
    report = Report(browser, tmp_path / "report.html", lost_primary(), scheme="dark")

    assert report.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
    line = "getComputedStyle(document.querySelector('svg .line')).stroke"
    assert report.page.evaluate(line) == "rgb(138, 180, 255)"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
@pytest.mark.parametrize("story", ["lost primary", "nothing", "undo not confirmed"])
def test_axe_finds_no_violation(browser: Browser, tmp_path: Path, width: int, scheme: str, story: str) -> None:
    run = {
        "lost primary": lost_primary(),
        "nothing": record(faults=(), series=(), events=()),
        "undo not confirmed": record(
            faults=(fault(undo="residue", residue=("table inet brownout-3f",), proved=False),),
            series=(series(missed=3),),
        ),
    }[story]
    report = Report(browser, tmp_path / "report.html", run, width=width, scheme=scheme)
    result = Axe().run(report.page)

    assert result.violations_count == 0, result.generate_report()
    assert len(result.response["passes"]) > 10


def test_fault_band_lines_outages_gap_states_and_marks_are_on_the_screen(browser: Browser, tmp_path: Path) -> None:
    page = Report(browser, tmp_path / "report.html", lost_primary()).page
    picture = page.locator("#picture ~ figure svg").first

    for selector, count in {
        "[data-fault='lose-app-1'] rect": 1,
        "[data-band='lose-app-1']": 1,
        "[data-vantage='controller'] path.line": 1,
        "[data-vantage='edge'] path.line": 1,
        "[data-outage]": 2,
        "[data-gap]": 1,
        "[data-watch='lb:shop/app-1'] [data-state='DOWN'] rect": 1,
        "[data-mark]": 7,
    }.items():
        found = picture.locator(selector)
        assert found.count() == count, selector
        for one in found.all():
            box = one.bounding_box()
            assert box is not None, selector
            assert box["width"] >= 1, selector
            assert box["height"] >= 1, selector


def test_the_line_has_no_ink_where_no_answer_came(browser: Browser, tmp_path: Path) -> None:
    """Asked of the browser's own geometry: along the drawn line, no point lies inside the outage or the gap."""
    page = Report(browser, tmp_path / "report.html", lost_primary()).page
    strays = page.evaluate(
        """() => {
          const lane = document.querySelector("svg [data-vantage='controller']");
          const line = lane.querySelector('path.line');
          const holes = [...lane.querySelectorAll('[data-outage], [data-gap]')].map(hole => hole.getBBox());
          const pieces = line.getAttribute('d').split('M').filter(Boolean).map(piece => 'M' + piece);
          let strays = 0, points = 0;
          for (const piece of pieces) {
            const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
            path.setAttribute('d', piece);
            for (let at = 0; at <= path.getTotalLength(); at += 0.5) {
              const x = path.getPointAtLength(at).x; points += 1;
              if (holes.some(hole => x > hole.x + 1.5 && x < hole.x + hole.width - 1.5)) strays += 1;
            }
          }
          return {strays, points, holes: holes.length};
        }"""
    )

    assert strays["holes"] == 2
    assert strays["points"] > 1000
    assert strays["strays"] == 0


def test_labels_of_marks_do_not_collide_as_the_browser_sets_them(browser: Browser, tmp_path: Path) -> None:
    crowded = record(
        faults=tuple(fault(f"fault-{k}", 10.0 + k / 10, 59.0 + k / 100) for k in range(5)),
        series=(series(down=((10.2, 11.0),)),),
        events=(change(0.1, "", "UP"), change(10.9, "UP", "DOWN")),
    )
    for file, run in (("one.html", lost_primary()), ("two.html", crowded)):
        page = Report(browser, tmp_path / file, run).page
        assert page.locator("svg [data-mark]").count() > 10
        assert page.evaluate(OVERLAPS) == []


def test_on_a_phone_only_the_picture_and_tables_scroll_sideways(browser: Browser, tmp_path: Path) -> None:
    page = Report(browser, tmp_path / "report.html", lost_primary(), width=390).page

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture = page.locator(".picture").first
    assert picture.evaluate("element => element.scrollWidth > element.clientWidth")
    table, drawing = page.locator("#expectations").bounding_box(), picture.bounding_box()
    assert table is not None
    assert drawing is not None
    assert table["y"] < drawing["y"], "the verdict table comes before the picture"


def test_on_paper_the_picture_is_light_and_fits_even_if_the_screen_is_dark(browser: Browser, tmp_path: Path) -> None:
    page = Report(browser, tmp_path / "report.html", lost_primary(), width=760, scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('svg .ink')).fill") == "rgb(31, 41, 55)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 760


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, tmp_path: Path) -> None:
    evil = "\x1b[31m<script>alert(1)</script><img src=http://evil.test/a onerror=alert(2)>"
    evil += "\u202egnp.exe\"'><svg/onload=alert(3)>"
    run = record(
        name=evil,
        hypothesis=evil,
        source=evil,
        operator=evil,
        series=(series(evil, evil, who=lambda _: evil, down=((20.0, 22.0),), outcome=evil),),
        faults=(fault(evil, kind=evil, host=evil, explanation=evil, undo="residue", residue=(evil,)),),
        events=(change(0.1, "", "UP", evil), change(21.0, "UP", evil, evil)),
    )
    report = Report(browser, tmp_path / "report.html", run)

    assert report.requests == [report.url]
    assert report.complaints == []
    assert report.page.locator("script, img").count() == 0
    shown = report.page.locator("h1").inner_text()
    assert "\\x1b[31m<script>alert(1)</script>" in shown
    assert "\\u202egnp.exe" in shown
