"""The static site in a real browser, opened from its folder: Chromium driven by Playwright."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aal_bench.leaderboard.board import boards
from aal_bench.leaderboard.metadata import Metadata
from aal_bench.leaderboard.site.build import build
from aal_bench.leaderboard.submit import submit

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium: apt-get install chromium, or set CHROMIUM to the path of one",
)
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TITLE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
PHONE = {"width": 375, "height": 700}
# Every visible text against the first opaque background behind it (WCAG 2.1, relative luminance).
CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("script, .unseen, option")) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [one, other] = [light(parse(ink)), light(behind(element))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), text.slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser") / "site"


@pytest.fixture
def site(make_entry: Callable[..., Path], boards_root: Path, built: Path) -> str:
    """The address of a site: six entries on `digits`, one of them hostile; one on `cifar10`.

    It is built once: no test changes it.
    """
    if built.exists():
        return built.as_uri()
    for seed, falls in enumerate((4, 6, 5)):
        passes = {"training.passes": {"forward": 11, "backward": 11}}
        make_entry(f"pgd-{seed}", falls=range(falls), unclean=[39], seed=seed, **passes)
    for seed, falls in enumerate((20, 21)):
        cost: dict[str, Any] = {"training.wall_seconds": 3.0 + seed}
        cost["training.passes"] = {"forward": 2, "backward": 2}
        make_entry(f"fgsm-{seed}", falls=range(falls), method="fgsm", seed=seed, **cost)
    hostile = make_entry("hostile", falls=range(12), method="aal-pgd", venue="arXiv")
    hostile.write_text(json.dumps(json.loads(hostile.read_text()) | {"name": TITLE}))
    make_entry("Rice2020Overfitting", falls=range(20), task="cifar10", method=None)
    build(boards(boards_root), built)
    return built.as_uri()


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Callable[..., Any]]:
    """``visit("index.html", **context)`` -> page; at the end nothing may have gone wrong."""
    wrong: list[str] = []
    contexts = []

    def go(path: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: foreign(request.url))
        page.goto(f"{site}/{path}")
        return page

    def foreign(address: str) -> None:
        if not address.startswith((f"{site}/", "data:", "blob:")):
            wrong.append(f"asked for {address}")

    yield go
    for context in contexts:
        for page in context.pages:
            page.wait_for_load_state()
    seen = [*wrong]  # closing a page is no fault of it
    for context in contexts:
        context.close()
    assert seen == []


def shows(page: Any, *methods: str) -> None:
    """Wait until the ranking lists exactly these methods in this order."""
    sync_api.expect(page.locator("table.ranking tbody th a bdi")).to_have_text([*methods])


def shows_column(page: Any, name: str, *values: str) -> None:
    """Wait until a column of the ranking holds these values in this order."""
    head = page.locator("table.ranking thead th").all_inner_texts()
    cells = page.locator(f"table.ranking tbody tr > :nth-child({head.index(name) + 1})")
    sync_api.expect(cells).to_contain_text([*values])


RANKED = ("pgd", "pgd", "pgd", "aal-pgd", "fgsm", "fgsm")


def test_a_click_on_a_heading_sorts(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html")
    shows(page, *RANKED)
    page.get_by_role("button", name="Training").click()
    shows_column(page, "Training", "31.0 s", "31.0 s", "31.0 s", "31.0 s", "4.0 s", "3.0 s")
    page.get_by_role("button", name="Training").click()
    shows_column(page, "Training", "3.0 s", "4.0 s", "31.0 s", "31.0 s", "31.0 s", "31.0 s")
    page.get_by_role("button", name="Rank").click()
    shows(page, *RANKED)


def test_passes_sort_by_their_number_and_the_axis_of_seconds_says_what_they_are_worth(
    visit: Callable[..., Any],
) -> None:
    page = visit("digits-Linf.html")
    page.get_by_role("button", name="Passes").click()
    shows_column(page, "Passes, all epochs", "660", "660", "660", "120", "120", "–")
    title = page.locator(".plot[data-kind=plane] .xtitle")
    sync_api.expect(title).to_have_text("training time, machine-dependent")


def test_enter_on_a_heading_sorts(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html")
    # 40 images, less those that fell, less one that was wrong from the start for `pgd`.
    shows_column(page, "AutoAttack %", "87.50", "82.50", "85.00", "70.00", "50.00", "47.50")
    page.get_by_role("button", name="AutoAttack").focus()
    page.keyboard.press("Enter")
    shows_column(page, "AutoAttack %", "87.50", "85.00", "82.50", "70.00", "50.00", "47.50")
    heading = page.locator("table.ranking thead th", has_text="AutoAttack")
    assert heading.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    shows_column(page, "AutoAttack %", "47.50", "50.00", "70.00", "82.50", "85.00", "87.50")


def test_search_and_choice_filter(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html")
    page.get_by_role("combobox", name="Method").select_option("fgsm")
    shows(page, "fgsm", "fgsm")
    page.get_by_label("Search").fill('"seed 1"')
    shows(page, "fgsm")
    assert "1 of 6 rows" in page.locator(".dt-info").first.inner_text()
    page.get_by_role("combobox", name="Method").select_option("")
    shows(page, "pgd", "fgsm")
    page.get_by_label("Search").fill("seed 2")  # not the 2 of CNN-4-32, 24/255 or a hash
    shows(page, "pgd")
    page.get_by_label("Search").fill("cnn FGSM seed 0")
    shows(page, "fgsm")
    page.get_by_label("Search").fill("two cores")  # in a cell, but no name
    page.get_by_text("No row matches").wait_for()
    page.get_by_label("Search").fill("nothing of this kind")
    page.get_by_text("No row matches").wait_for()


def test_an_entry_opens_by_click_and_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    page.get_by_role("link", name="handwritten digits").click()
    page.wait_for_load_state()  # what is left while it loads is a failed request
    page.get_by_role("link", name="aal-pgd").click()
    page.wait_for_url("**/digits-Linf/hostile.html")
    assert "70.00 %" in page.locator(".tiles").inner_text()
    page = visit("digits-Linf.html")
    page.get_by_role("link", name="fgsm seed 1").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/digits-Linf/fgsm-1.html")
    page.get_by_role("link", name="seed 0").click()
    page.wait_for_url("**/digits-Linf/fgsm-0.html")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html")
    focused = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.id") == "main"
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"{focused}.className + ' ' + {focused}.tagName"))
        if "BODY" in reached[-1]:
            break
        assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") != "none"
    assert {"INPUT", "SELECT", "SPAN", "SUMMARY", "A"} <= {name.split()[-1] for name in reached}
    assert sum("dt-column-order" in name for name in reached) == 9  # one for every column


def test_a_hostile_title_is_only_text(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html")
    assert TITLE in page.locator("table.ranking").inner_text()
    page.get_by_label("Search").fill("alert")  # DataTables reads the cells anew
    shows(page, "aal-pgd")
    assert page.locator("img").count() == 0
    page = visit("digits-Linf/hostile.html")
    assert TITLE in page.locator("main").inner_text()
    assert page.locator("img").count() == 0  # `visit` fails on a dialog


def test_plots_show_one_point_for_each_entry_and_open_it(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html")
    for kind in ("plane", "tradeoff"):
        plot = page.locator(f".plot[data-kind={kind}]")
        plot.locator("path.point").first.wait_for()
        assert plot.locator("path.point").count() == 6
        assert "6 entries" in str(plot.get_attribute("aria-label"))
    assert page.locator(".legend li").all_inner_texts() == [
        "pgd, CNN-4-32",
        "aal-pgd, CNN-4-32",
        "fgsm, CNN-4-32",
    ]
    plot = page.locator(".plot[data-kind=plane]")
    plot.locator("path.point").last.hover(force=True)  # plotly's own layer lies above the points
    plot.locator(".hovertext").wait_for()
    hover = str(plot.locator(".hovertext").text_content())
    assert "fgsm-1" in hover
    assert "passes 120 per image (2 + 2, every epoch)" in hover
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/digits-Linf/fgsm-1.html")


def test_published_rows_are_a_background_and_a_folded_table(visit: Callable[..., Any]) -> None:
    page = visit("cifar10-Linf.html")
    grey = page.locator(".plot[data-kind=tradeoff] path.point")
    grey.first.wait_for()
    assert grey.count() == 1  # on other pixels: drawn on demand
    page.get_by_role("button", name="RobustBench, published").click()
    sync_api.expect(grey.nth(1)).to_be_attached()
    table = page.locator("#robustbench table")
    assert not table.is_visible()
    page.get_by_text("published there, not verified here").click()
    table.wait_for()
    assert grey.count() == table.locator("tbody tr").count() + 1
    assert page.locator(".plot[data-kind=plane]").count() == 0  # a checkpoint without training
    page.locator("#robustbench").get_by_label("Search").fill("Rice2020")
    sync_api.expect(table.locator("tbody tr")).to_have_count(1)


@pytest.mark.parametrize(
    "path", ["index.html", "digits-Linf.html", "cifar10-Linf.html", "digits-Linf/hostile.html"]
)
def test_a_phone_shows_it_in_both_schemes(visit: Callable[..., Any], path: str) -> None:
    backgrounds = []
    page = visit(path, viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for scheme in ("light", "dark"):  # a live switch, as at dusk
        page.emulate_media(color_scheme=scheme)
        page.locator("html.dark" if scheme == "dark" else "html:not(.dark)").wait_for()
        if page.locator(".plot").count():
            ink = page.evaluate("getComputedStyle(document.body).color")
            tick = page.locator(".plot .xtick text").first
            sync_api.expect(tick).to_have_css("fill", ink)
        width, inner = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert width <= inner == 375
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 30
        assert [found for found in contrasts if found[0] < 4.5] == []
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds[0] != backgrounds[1]


def test_without_scripts_it_is_a_page_of_tables(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf.html", java_script_enabled=False)
    shows(page, *RANKED)
    page.get_by_role("link", name="pgd seed 2").click()
    assert "aal-bench run digits" in page.locator("pre").inner_text()
    assert not page.locator("button.copy").is_visible()


def test_the_command_can_be_copied(visit: Callable[..., Any]) -> None:
    page = visit("digits-Linf/pgd-0.html", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "git checkout c0ffee\naal-bench run digits --method pgd"


def test_a_few_shot_board_shows_clean_accuracy_and_what_was_attacked(
    browser: Any, make_episodes: Callable[..., Any], tmp_path: Path
) -> None:
    wrong: list[str] = []
    for name, skill, protocol in (("ier", 0.6, "episodes"), ("rfs", 0.5, "robust-episodes")):
        make_episodes(name=name, method=name, skill=skill, protocol=protocol)
        submit(tmp_path / name, tmp_path / "boards", Metadata())
    build(boards(tmp_path / "boards"), tmp_path / "site")
    context = browser.new_context()
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{(tmp_path / 'site').as_uri()}/mini-imagenet-5w1s-Linf.html")
    shows(page, "ier", "rfs")
    head = page.locator("table.ranking thead th").all_inner_texts()
    assert head[2:6] == ["Clean %", "Mean ± sd", "AutoAttack %", "All attacks %"]
    for kind, points, axis in (("plane", 2, "clean accuracy, %"), ("tradeoff", 1, "under attack")):
        plot = page.locator(f".plot[data-kind={kind}]")
        plot.locator("path.point").first.wait_for()
        assert plot.locator("path.point").count() == points
        assert axis in str(plot.locator(".ytitle").text_content())
    page.locator(".plot[data-kind=plane] path.point").first.hover(force=True)
    page.locator(".hovertext").wait_for()
    assert "robust" not in str(page.locator(".hovertext").text_content()), "ier was not attacked"
    page.get_by_role("link", name="rfs seed 0").click()
    page.wait_for_url("**/mini-imagenet-5w1s-Linf/rfs-*.html")
    assert "600 episodes of 75 queries" in page.locator("main").inner_text()
    context.close()
    assert wrong == []
