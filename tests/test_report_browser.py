"""The page in a real browser: it draws, hovers, keeps silent, and suits the dark, a phone and paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptive_warmup import Config, report
from tests.plant import steady
from tests.test_report import COLLAPSING, RISING, logged

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here: apt-get install chromium")
PANELS = ["lr", "kl", "task_reward", "kl_reward", "grad_norm", "phases"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [
        logged(folder / "held.jsonl", RISING, steady(20), grad_norm=1.0),
        logged(folder / "fallen <i>&.jsonl", COLLAPSING, Config(20), grad_norm=2.0),
        logged(folder / f"{'long-name-' * 8}.jsonl", RISING, Config(20, law="linear")),
    ]
    report.write(folder / "report.html", runs)
    return folder / "report.html"


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Any]:
    """Open the page in a context of the given settings; afterwards nothing may have been said or asked for."""
    contexts, noise = [], []

    def opened(width: int = 1200, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: noise.append(request.url) if request.url != page_file.as_uri() else None)
        page.goto(page_file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


def hover(page: Any, panel: str, trace: int, point: int) -> str:
    """The text that shows when the mouse is on a point, found by the plot's own axes."""
    page.locator(f"#{panel}").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """([panel, trace, point]) => {
            const plot = document.getElementById(panel), box = plot.getBoundingClientRect(), data = plot.data[trace];
            const {xaxis, yaxis} = plot._fullLayout;
            return [box.x + xaxis._offset + xaxis.d2p(data.x[point]), box.y + yaxis._offset + yaxis.d2p(data.y[point])];
        }""",
        [panel, trace, point],
    )
    page.mouse.move(x, y)
    label = page.locator(f"#{panel} .hovertext")
    label.first.wait_for()
    return " ".join(label.all_text_contents())


def test_all_panels_are_drawn_for_all_runs(visit: Any) -> None:
    page = visit()
    assert page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.id)") == PANELS
    drawn = page.locator("#lr .scatterlayer .trace .js-line").evaluate_all(
        "lines => lines.map(l => l.getAttribute('d'))"
    )
    assert len([path for path in drawn if path and len(path) > 20]) == 7  # three lrs, two ceilings, two nominal warmups
    assert page.locator("#phases .bars path").count() >= 6
    assert "the ceiling at lr 3.0e-3" in page.inner_text("ul >> nth=0")
    assert page.locator("tbody tr").count() == 3
    assert page.title() == "adaptive-warmup"
    assert all(page.locator(f"#{panel}").get_attribute("aria-label") for panel in PANELS)


def test_hovering_shows_the_decision_its_reasons_and_alarms(visit: Any) -> None:
    page = visit()
    said = hover(page, "lr", 0, 50)
    assert "step 50: Learning rate 0.00300" in said
    assert "at_ceiling, next at 0.3 of the schedule" in said
    assert "kl 0.01 is 1 x the target 0.01: holding at 0.3" in said
    assert "nominal 0.0100, ceiling 0.00300" in said
    rung = page.evaluate("data.panels[0].marks.find(mark => mark.run === 1 && mark.kind === 'alarm').step")
    said = hover(page, "lr", 1, rung)
    assert "fallen <i>&" in said  # as text, not as a tag
    assert "score_drop: the task reward is at" in said
    assert "backing_off" in said
    assert "target 0.0100" in hover(page, "kl", 0, 50)


def test_dark_and_light_differ_down_to_the_plots(visit: Any) -> None:
    looks = []
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        page.locator("#lr .xtick text").first.wait_for()
        looks.append(
            page.evaluate(
                """() => [getComputedStyle(document.body).backgroundColor,
                          ...["text", ".gridlayer path"].map(part =>
                             document.querySelector("#lr " + part)).map((found, i) =>
                             getComputedStyle(found)[i ? "stroke" : "fill"])]"""
            )
        )
    light, dark = ([sum(map(int, colour[4:-1].split(","))) / 765 for colour in look] for look in looks)
    assert light[0] - light[1] > 0.8  # dark ink on light paper
    assert dark[1] - dark[0] > 0.8
    assert light[0] - light[2] == pytest.approx(0.1, abs=0.1)  # the grid is faint on both
    assert dark[2] - dark[0] == pytest.approx(0.13, abs=0.1)


def test_on_a_phone_nothing_runs_out_of_the_screen(visit: Any) -> None:
    page = visit(width=390, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert all(box["width"] <= 390 for plot in PANELS if (box := page.locator(f"#{plot}").bounding_box()))
    for run, step in ((0, 20), (1, 65), (2, 10)):
        hover(page, "lr", run, step)
        box = page.locator("#lr .hovertext").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_on_paper(visit: Any, tmp_path: Path) -> None:
    page = visit(color_scheme="dark")
    assert not page.locator("details").first.get_attribute("open")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # page.pdf sends it too, and takes it back
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == "rgb(0, 0, 0)"
    assert page.locator("details").first.get_attribute("open") is not None
    assert all(page.locator(f"#{plot} .main-svg").first.bounding_box()["width"] == 680 for plot in PANELS)
    assert not page.locator(".screen").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.pdf(path=tmp_path / "page.pdf", format="A4").startswith(b"%PDF")


def test_runs_can_be_hidden_and_a_zoom_is_shared(visit: Any) -> None:
    page = visit()
    page.get_by_role("checkbox", name="held").uncheck()
    shown = page.evaluate("document.getElementById('kl').data.map(trace => [trace.meta, trace.visible ?? true])")
    assert {tuple(pair) for pair in shown} == {(0, False), (1, True), (2, True)}
    page.evaluate("Plotly.relayout('lr', {'xaxis.range[0]': 10, 'xaxis.range[1]': 20})")
    page.wait_for_function("document.getElementById('grad_norm').layout.xaxis.range[1] === 20")
    ranges = page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.layout.xaxis.range)")
    assert ranges == [[10, 20]] * len(PANELS)
