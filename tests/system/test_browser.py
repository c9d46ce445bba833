"""The report in a real browser: it is drawn, requests nothing, and runs no name as code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from casting_tune.data import pack as packs
from casting_tune.report import page as report
from casting_tune.store.store import Store

CHROMIUM = "/usr/bin/chromium"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium"
    ),
]
playwright = pytest.importorskip("playwright.sync_api")

ALL_DRAWN = "() => document.querySelectorAll('figure[data-figure]:not(.drawn)').length === 0"


@dataclass
class Opened:
    """A page in the browser, and what it did that it must not."""

    page: playwright.Page
    messages: list[str] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    quiet = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking",
             "--disable-dev-shm-usage", "--disable-component-update", "--no-first-run"]  # fmt: skip
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(
    trained: Store, hostile: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two reports: of a trained sweep, with thumbnails; and of one whose names are markup."""
    folder = tmp_path_factory.mktemp("pages")
    dataset = trained.read("cells")["dataset_id"].to_pylist()[0]
    packed = packs.open_pack(trained.root / "packs" / dataset)
    pages = {
        "tiny": report.page(
            trained,
            report.Request(sweep="tiny", question="Does it run?"),
            packed=packed,
            with_images=True,
        ),
        "hostile": report.page(hostile, report.Request(sweep="s", max_escape="10%")),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture
def open_page(browser: playwright.Browser, files: dict[str, Path]) -> Iterator[object]:
    """A function that opens one of the reports in an offline context of its own."""
    contexts = []

    def opened(
        name: str, *, width: int = 1400, scheme: str = "light", scripts: bool = True
    ) -> Opened:
        context = browser.new_context(
            offline=True,
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=scripts,
        )
        contexts.append(context)
        one = Opened(context.new_page())
        one.page.on(
            "console", lambda message: one.messages.append(f"{message.type}: {message.text}")
        )
        one.page.on("pageerror", lambda error: one.messages.append(str(error)))
        one.page.on("request", lambda request: one.asked_for.append(request.url))
        one.page.goto(files[name].as_uri())
        if scripts:
            one.page.wait_for_function(ALL_DRAWN, timeout=60_000)
        return one

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400, 1600])
@pytest.mark.parametrize("name", ["tiny", "hostile"])
def test_the_page_is_drawn_whole_and_silent_at_every_width(
    open_page, files, name, width, scheme
) -> None:
    opened = open_page(name, width=width, scheme=scheme)
    page = opened.page
    figures = page.query_selector_all("figure[data-figure]")
    assert len(figures) == 6
    for figure in figures:
        lines = figure.query_selector_all(".scatterlayer .trace path")
        assert any((line.get_attribute("d") or "").startswith("M") for line in lines)
        size = figure.query_selector(".main-svg").bounding_box()
        assert size["width"] > 200
        assert size["height"] > 200
        inner = figure.query_selector(".plot").bounding_box()
        assert size["width"] <= inner["width"] + 1
    pictures = page.evaluate(
        "() => [...document.images].map((image) => image.complete && image.naturalWidth)"
    )
    assert len(pictures) >= 6
    assert all(pictures)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate("() => window.hacked") is None
    assert opened.messages == []
    assert [url for url in opened.asked_for if not url.startswith("data:")] == [
        files[name].as_uri()
    ]


def test_names_that_are_markup_stay_names_where_the_mouse_points(open_page) -> None:
    opened, shown = open_page("hostile"), []
    for figure in opened.page.query_selector_all("figure[data-figure]"):
        figure.scroll_into_view_if_needed()
        box = figure.query_selector(".nsewdrag").bounding_box()
        for share in (0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95):
            opened.page.mouse.move(
                box["x"] + share * box["width"], box["y"] + (1 - share) * box["height"]
            )
            opened.page.wait_for_timeout(60)
            shown += [
                label.text_content()
                for label in opened.page.query_selector_all(".hoverlayer .hovertext")
            ]
    assert any("onerror" in text for text in shown)  # a name was shown, as text
    assert opened.page.evaluate("() => window.hacked") is None
    assert opened.page.query_selector("img[src='x']") is None
    assert opened.messages == []


def test_a_click_on_a_heading_sorts_and_a_second_click_turns_the_order(open_page) -> None:
    page = open_page("tiny").page
    heads = [head.inner_text().strip() for head in page.query_selector_all("#comparison thead th")]
    column = heads.index("acc %")

    def values() -> list[float]:
        rows = page.query_selector_all("#comparison tbody tr")
        return [float(row.query_selector_all("th, td")[column].inner_text()) for row in rows]

    before = values()
    assert len(set(before)) > 2
    button = page.get_by_role("button", name="acc %", exact=True)
    button.click()
    assert values() == sorted(before, reverse=True)
    assert (
        page.query_selector_all("#comparison thead th")[column].get_attribute("aria-sort")
        == "descending"
    )
    button.click()
    assert values() == sorted(before)
    name = page.get_by_role("button", name=heads[0], exact=True)
    name.click()
    name.click()
    words = [
        row.query_selector("th").inner_text().lower()
        for row in page.query_selector_all("#comparison tbody tr")
    ]
    assert words == sorted(words)
    assert (
        page.query_selector_all("#comparison thead th")[column].get_attribute("aria-sort") is None
    )


def test_the_filter_keeps_the_rows_that_hold_every_word(open_page) -> None:
    page = open_page("tiny").page
    field = page.get_by_label("Filter")
    count = page.locator("[data-counts='comparison']")
    rows = page.locator("#comparison tbody tr:visible")
    n = rows.count()
    field.fill("nearest TURNS")
    assert [text.split(",")[0] for text in rows.locator("th").all_inner_texts()] == [
        "nearest neighbour"
    ] * 2
    assert count.inner_text() == f"2 of {n} rows"
    field.fill("nothing is called so")
    assert rows.count() == 0
    field.fill("")
    assert rows.count() == n


def test_without_scripts_every_figure_shows_its_numbers(open_page) -> None:
    page = open_page("tiny", scripts=False).page
    tables = page.locator("details.numbers table")
    assert tables.count() == 6
    for k in range(6):
        assert tables.nth(k).is_visible()
        assert tables.nth(k).locator("tbody tr").count() >= 1
    assert page.get_by_label("Filter").is_hidden()
    assert page.locator("#comparison tbody tr").first.is_visible()


def test_the_page_prints_on_a4_in_light_colours_with_nothing_cut_off(open_page) -> None:
    page = open_page("tiny", scheme="dark").page
    content = page.pdf(prefer_css_page_size=True)
    assert content.startswith(b"%PDF")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})  # A4 less its margins
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    assert (
        page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 700
    widths = page.evaluate(
        "() => [...document.querySelectorAll('.main-svg')].map((svg) => svg.clientWidth)"
    )
    assert max(widths) <= 640


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["tiny", "hostile"])
def test_axe_finds_nothing_serious(open_page, name, scheme) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(name, scheme=scheme).page
    found = Axe().run(page).response
    assert len(found["passes"]) > 10  # it did look
    grave = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    assert [
        (rule["id"], [node["html"][:120] for node in rule["nodes"][:3]]) for rule in grave
    ] == []
