"""The report's page in a real browser, on runs with figures worked out by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright

from benchmarks.analysis.compare import compare
from benchmarks.analysis.load import load
from benchmarks.analysis.page import number, write
from benchmarks.analysis.tables import wording
from benchmarks.styles import KNOWN
from tests.unit.analysis.recorded import record

CHROMIUM = "/usr/bin/chromium"
WILD = r"<script>alert(1)</script> $$x$$ \(y\) [bold]"

CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = rgb(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const tags ="h1, h2, p, label, select, input, button, th, td, li, summary, figcaption";
  return [...document.querySelectorAll(tags)].filter(each => each.checkVisibility()).map(each => {
    const [a, b] = [light(rgb(getComputedStyle(each).color)), light(behind(each))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), each.tagName + " " + each.textContent.slice(0, 30)];
  }).sort((x, y) => x[0] - y[0])[0];
}"""


PAINTED = """new MutationObserver((_, observer) => {
  if (!document.querySelector(".plot + figcaption")?.textContent) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => window.painted = performance.now(), 0));
}).observe(document, {subtree: true, childList: true, characterData: true})"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods on three seeds, one on two; two clients, two rounds; recorded.record says what is sent."""
    out = tmp_path_factory.mktemp("runs")
    for seed, more in enumerate((0, 0.02, 0.01)):
        record(out, "fedavg", seed, [(0.4, 0.6), (0.70 + more, 0.80 + more)])
        record(out, "local", seed, [(0.5, 0.7), (0.72, 0.6)], sent=0, judged_on="trained")
        record(out, "pfedpara", seed, [(0.6, 0.6), (0.9, 0.7)], sent=25, judged_on="trained")
        if seed < 2:
            record(out / "wild", "fedper", seed, [(0.3, 0.3), (0.5, 0.5)], sent=50, label=WILD)
    comparisons = compare(load([out]))
    return write(comparisons, out / "report", wording, "")[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield start(playwright)


def start(playwright: Playwright) -> Browser:
    for options in ({"executable_path": CHROMIUM}, {}):
        try:
            return playwright.chromium.launch(args=["--no-sandbox"], **options)
        except Error:
            continue
    pytest.skip("no Chromium can be started here")


def show(browser: Browser, path: Path, **options: Any) -> Page:
    """Opens the page; closing it fails where the console said anything amiss or anything was fetched."""
    page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options).new_page()
    page.amiss = []  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.amiss.append(str(error)))  # type: ignore[attr-defined]
    page.on("console", lambda said: page.amiss.append(said.text) if said.type in ("error", "warning") else None)  # type: ignore[attr-defined]
    page.on(
        "request", lambda asked: page.amiss.append(asked.url) if not asked.url.startswith(("data:", "file:")) else None
    )  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    return page


def settled(page: Page) -> str:
    """Returns the caption of the plot, which ends each drawing."""
    page.wait_for_function("document.querySelector('.plot + figcaption').textContent")
    return page.locator(".plot + figcaption").inner_text()


def drawn(page: Page, source: str) -> dict[str, list[Any]]:
    """Returns the columns of one of Bokeh's sources."""
    found: dict[str, list[Any]] = page.evaluate("name => Bokeh.documents[0].get_model_by_name(name).data", source)
    return found


def curve(page: Page, method: str) -> list[tuple[float, float]]:
    points = drawn(page, "points")
    return [(x, y) for name, x, y in zip(points["method"], points["x"], points["y"], strict=True) if name == method]


def rows(page: Page) -> list[str]:
    return [th.inner_text() for th in page.locator("table").first.locator("tbody tr:not([hidden]) th").all()]


def test_the_switches_draw_what_they_say(browser: Browser, report: Path) -> None:
    page = show(browser, report)
    caption = settled(page)
    # Two clients, up and down: 4 × 100 a round, and 2 × 100 more down to each that is judged on what it receives.
    assert curve(page, "fedavg") == [(600, 50), (1000, 76)]
    assert curve(page, "pfedpara") == [(50, 60), (150, 80)]  # less the last uplink, 2 × 25
    # Ends: local 66 for nothing, pfedpara 80 for 150. The other two send more for less.
    assert "Pareto front: local, pfedpara." in caption
    assert "The left edge stands for 0." in caption
    values = dict(zip(drawn(page, "points")["method"], drawn(page, "points")["value"], strict=True))
    assert values[WILD] == "accuracy %: 50.0"  # two seeds are too few for an interval
    assert len(drawn(page, "bands")["x"]) == 3
    page.select_option("[name=axis]", "round")
    assert curve(page, "local") == [(1, 60), (2, 66)]
    page.select_option("[name=axis]", "bytes")
    assert curve(page, "fedavg") == [(1600, 50), (3200, 76)]
    page.select_option("[name=choice]", "worst_decile")
    assert [y for _, y in curve(page, "pfedpara")] == [60, 70]
    page.select_option("[name=choice]", "below_local")
    # local ends with 72 and 60. pfedpara: 60 < 72, 60 = 60; then none. FedAvg: 40 < 72, 60 = 60; then 70 < 72 with
    # seed 0, 72 = 72 with seed 1, 71 < 72 with seed 2.
    assert [y for _, y in curve(page, "pfedpara")] == [50, 0]
    assert [y for _, y in curve(page, "fedavg")] == pytest.approx([50, 33.33])
    assert "Not recorded for local." in settled(page)
    page.select_option("[name=view]", "clients")
    dots = drawn(page, "dots")
    marks = [x for name, x in zip(dots["method"], dots["x"], strict=True) if name == "pfedpara"]
    assert marks == pytest.approx([18, 10] * 3)
    page.select_option("[name=choice]", "accuracy")
    assert drawn(page, "means")["x"] == pytest.approx([80, 76, 66, 50])  # in the table's order
    options = page.locator("[name=axis] option").all_inner_texts()
    assert not any("seconds on 100 ranks" in option for option in options) or "fedavg" in rows(page)
    assert "These runs recorded none of: gradients of a sample's loss" in page.locator(".notes").inner_text()
    assert page.amiss == []  # type: ignore[attr-defined]


def test_hovering_shows_the_figures_of_a_round(browser: Browser, report: Path) -> None:
    page = show(browser, report)
    settled(page)
    page.select_option("[name=axis]", "round")
    page.wait_for_timeout(300)
    x, y = page.evaluate("""() => {
      const find = view => view.model.name === "linear" ? view : (view.child_views ?? []).map(find).find(each => each);
      const view = Bokeh.index.roots.map(find).find(each => each), box = view.el.getBoundingClientRect();
      const {bbox, x_scale, y_scale} = view.frame;
      return [box.left + x_scale.compute(2), box.top + y_scale.compute(76)];
    }""")
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    tip = page.get_by_text("fedavg, round 2").last
    # Seeds 0.75, 0.77, 0.76: sample deviation 0.01, t(0.975; 2) = 4.303, half 2.48 points.
    expect(tip).to_contain_text("accuracy %: 76.0 ± 2.5")
    expect(tip).to_contain_text("rounds: 2")
    assert page.amiss == []  # type: ignore[attr-defined]


def test_filter_pin_and_sort(browser: Browser, report: Path) -> None:
    page = show(browser, report)
    settled(page)
    assert rows(page) == ["pfedpara", "fedavg", "local", WILD]
    page.get_by_role("button", name="fedavg").click()
    assert rows(page) == ["fedavg", "pfedpara", "local", WILD]
    lines = dict(zip(drawn(page, "points")["method"], drawn(page, "points")["alpha"], strict=True))
    assert lines == {"fedavg": 1, "pfedpara": 0.2, "local": 0.2, WILD: 0.2}
    page.get_by_label("Only methods with").fill("PARA script")
    assert rows(page) == ["fedavg", "pfedpara", WILD]  # what is pinned stays
    assert set(drawn(page, "points")["method"]) == {"fedavg", "pfedpara", WILD}
    page.get_by_label("Only methods with").fill("")
    page.get_by_role("button", name="fedavg", exact=True).click()
    sent = page.get_by_role("columnheader", name="total sent")
    for order, expected in (
        ("descending", ["fedavg", WILD, "pfedpara", "local"]),
        ("ascending", ["local", "pfedpara", WILD, "fedavg"]),
    ):
        sent.get_by_role("button").click()
        assert (sent.get_attribute("aria-sort"), rows(page)) == (order, expected)
    assert page.amiss == []  # type: ignore[attr-defined]


def test_everything_can_be_reached_and_used_by_keyboard(browser: Browser, report: Path) -> None:
    page = show(browser, report)
    settled(page)
    uses = {"axis": "r", "pfedpara": "Enter", "worst decile %": "Space"}  # r for rounds
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        where = page.evaluate("(({name, value, textContent}) => name || value || textContent)(document.activeElement)")
        if where in uses and where not in seen:
            page.keyboard.press(uses[where])
        seen.add(where)
    assert {"view", "choice", "filter", "Pictures for print", "Commands that run this again", *uses} <= seen
    assert curve(page, "fedavg") == [(1, 50), (2, 76)]
    assert page.locator("button[aria-pressed=true]").get_attribute("value") == "pfedpara"
    assert page.get_by_role("columnheader", name="worst decile %").get_attribute("aria-sort") == "descending"
    assert rows(page) == ["pfedpara", "fedavg", "local", WILD]  # 70, then 71, 60, 50: it is pinned
    assert page.amiss == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_labels_and_contrast(browser: Browser, report: Path, scheme: str) -> None:
    page = show(browser, report, color_scheme=scheme)
    settled(page)
    assert page.evaluate("document.documentElement.lang") == "en"
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    assert page.evaluate("[...document.querySelectorAll('select, input')].every(each => each.labels.length)")
    assert page.evaluate("[...document.querySelectorAll('img')].every(each => each.alt)")
    assert page.evaluate("[...document.querySelectorAll('button')].every(each => each.textContent.trim())")
    assert page.evaluate("[...document.querySelectorAll('[role=img], [role=region]')].every(each => each.ariaLabel)")
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(table => table.tHead.querySelector('th[scope=col]')"
        " && [...table.tBodies[0].rows].every(row => row.cells[0].scope === 'row'))"
    )
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("[...document.querySelectorAll('h1, h2')].map(each => each.tagName)")[:2] == ["H1", "H2"]
    assert drawn(page, "lines")["color"][2] == page.evaluate("getComputedStyle(document.body).color")  # local's
    assert page.amiss == []  # type: ignore[attr-defined]


def test_a_phone_scrolls_tables_alone(browser: Browser, report: Path) -> None:
    page = show(browser, report, viewport={"width": 390, "height": 844})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("Bokeh.documents.length > 1")  # drawn anew
    assert page.amiss == []  # type: ignore[attr-defined]


def test_tables_are_there_without_scripts(browser: Browser, report: Path) -> None:
    page = show(browser, report, java_script_enabled=False)
    assert rows(page) == ["pfedpara", "fedavg", "local", WILD]
    assert not page.locator("form").is_visible()
    assert "pfedpara" in page.locator(".verdict").inner_text()


def test_names_of_the_plot_do_not_cover_one_another(browser: Browser, report: Path) -> None:
    page = show(browser, report)
    settled(page)
    # 100 points on 400 pixels: b is 4 pixels below a, and moves to 15; c, beside them, and d, below, stay.
    names = "[[1, 50, 'aaa'], [1, 49, 'b'], [1.5, 49, 'c'], [1, 20, 'd']].map(([x, y, text]) => ({x, y, text}))"
    moved = f"spread({names}, {{log: false, range: [0, 2]}}, [0, 100], 400).map(name => name.down)"
    assert page.evaluate(moved) == pytest.approx([5, 16, 5, 5])
    logarithmic = f"spread({names}, {{log: true, range: [0.1, 10]}}, [0, 100], 400).map(name => name.down)"
    assert page.evaluate(logarithmic) == pytest.approx([5, 16, 5, 5])
    page.get_by_role("button", name="fedavg", exact=True).click()
    assert set(drawn(page, "labels")["text"]) == {"pfedpara", "local", "fedavg"}  # the front, and what is pinned
    assert page.amiss == []  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_page_of_two_hundred_runs_opens(browser: Browser, tmp_path: Path) -> None:
    """20 methods, 2 partitions, 5 seeds, 10 clients, 10 rounds. How long it takes is printed: docs/performance.md."""
    for partition in ("iid", "dirichlet:0.5"):
        for place, method in enumerate(list(KNOWN)[:20]):
            for seed in range(5):
                rounds = [[1 - 1 / (2 + n + place % 7 + client / 10) for client in range(10)] for n in range(10)]
                record(tmp_path, method, seed, rounds, sent=100 + place, partition=partition)
    index = write(compare(load([tmp_path])), tmp_path / "report", wording, "")[0]
    assert index.stat().st_size < 4e6
    page = browser.new_context().new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.add_init_script(PAINTED)
    page.goto(index.as_uri())
    page.wait_for_function("window.painted")
    spent = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    print(
        f"{index.stat().st_size / 1e6:.1f} MB; plot there after {page.evaluate('painted') / 1000:.2f} s, "
        f"of which the page's thread computed {spent['ThreadTime']:.2f} s"
    )
    assert len(drawn(page, "lines")["x"]) == 20
    assert page.get_by_role("link", name="leaderboard").is_visible()


def test_numbers_that_a_table_is_sorted_by() -> None:
    cells = ("93.7 ± 0.9", "-4.9", "+0.3 ± 0.1", "203,530", "18.3 M", "10 up, 30 down", "–", "diverged", "2/3", "0.1 k")
    assert [number(cell) for cell in cells] == ["93.7", "-4.9", "0.3", "203530", "18300000", "10", "", "", "2", "100"]
