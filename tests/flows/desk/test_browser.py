"""The desk in a real browser: every page without an error and without the network, by keyboard, and text as text."""

import json
import shutil
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from worlds.browsers import CHROMIUM, Desk, served, settle
from worlds.desk_pages import PAGES

from tasks.artifacts.tables import read_table
from tasks.artifacts.views import opened
from tasks.browsing import filters
from tasks.catalogue.sources import find_artifacts

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
ENDLESS = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3"
NAMELESS = """() => [...document.querySelectorAll("input, textarea, button, select, [role=combobox]")]
    .filter(one => one.offsetParent !== null && !(one.getAttribute("aria-label") || one.textContent.trim()
        || (one.labels && [...one.labels].some(label => label.textContent.trim())) || one.title
        || one.getAttribute("aria-labelledby")))
    .map(one => one.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def looked_at(made, tmp_path_factory) -> Iterator[Desk]:
    """The project's desk and a browser."""
    root = tmp_path_factory.mktemp("browser") / "project"
    shutil.copytree(made.root, root, symlinks=True)
    with served(root) as desk:
        yield desk


@pytest.fixture
def desk(looked_at) -> Iterator[Desk]:
    """The desk; afterwards nothing was wrong in the browser's console, and nothing was asked of the network."""
    looked_at.errors.clear()
    looked_at.foreign.clear()
    yield looked_at
    for context in looked_at.browser.contexts:
        context.close()
    assert looked_at.errors == []
    assert looked_at.foreign == []


def count(desk: Desk, version: str, **asked: str) -> str:
    """Return what SQL says of a filter, as the page writes it."""
    found = find_artifacts(desk.root)
    with opened(found.views, derived=found.derived) as connection:
        counted = filters.count_rows(connection, filters.Filter(version, **asked))
    return f"{counted.rows:,} rows, digest {counted.digest}"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), pytest.param(800, True, marks=pytest.mark.slow)])
def test_every_page_is_drawn_without_an_error_and_text_of_data_is_text(desk, hostile, width, dark):
    row = next(
        row
        for row in read_table(desk.root / "data/examples/version=v1/examples.parquet").to_pylist()
        if row["topic"] == hostile and hostile in row["response"] and row["used"] and row["split"] == "pool"
    )
    for page in PAGES:
        look = desk.open(page, width=width, dark=dark, version="v1", id=row["id"])
        assert look.locator("[data-testid=stException]").count() == 0, page
        assert look.evaluate("document.documentElement.scrollWidth") <= width, page
        assert look.evaluate(NAMELESS) == [], page
        for made in ("script:has-text('alert(1)')", "strong:has-text('bold')", "a[href^='javascript']", ".katex"):
            assert look.locator(made).count() == 0, page
        look.close()


def test_a_control_without_a_name_would_be_found(desk):
    look = desk.open("overview")
    look.evaluate("document.body.append(document.createElement('input'))")
    assert len(look.evaluate(NAMELESS)) == 1


def test_a_filter_narrows_the_count_to_what_sql_says(desk):
    look = desk.open("rows", version="v1")
    assert look.get_by_text(count(desk, "v1")).count() == 1
    look.get_by_label("Says all of these words").fill("greetings")
    look.keyboard.press("Enter")
    look.get_by_text(count(desk, "v1", words="greetings")).wait_for()
    link = look.url
    look.goto(link)
    settle(look)
    assert look.get_by_text(count(desk, "v1", words="greetings")).count() == 1


def test_rows_open_by_keyboard(desk):
    subset = read_table(desk.root / "data/selection/version=v1/subset.parquet").to_pylist()
    ids = [row["id"] for row in sorted(subset, key=lambda row: row["rank"] or 0) if row["chosen"]]
    look = desk.open("rows", version="v1", state="chosen", order="rank")
    look.locator("h2").click()
    for key, id in (("n", ids[0]), ("n", ids[1]), ("p", ids[0])):
        look.keyboard.press(key)
        look.get_by_text(f"Row {id}: chosen").wait_for()
        settle(look)


def test_a_link_that_asks_for_no_such_number_says_so(desk):
    look = desk.open("rows", version="v1", sheet="999", score="gain", low="abc")
    for told in ("asks for 999 as page, which is none of 1 to 1", "asks for abc as score at least, which is no number"):
        look.get_by_text(told).wait_for()


def test_a_brush_on_the_map_lists_the_rows_inside(desk):
    look = desk.open("map", version="v1")
    total = int(look.get_by_text("rows lie inside").inner_text().split()[0])
    look.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
    box = look.locator("[data-testid=stVegaLiteChart]").bounding_box()
    left, top = box["x"] + box["width"] * 0.15, box["y"] + box["height"] * 0.1
    look.mouse.move(left, top)
    look.mouse.down()
    look.mouse.move(left + box["width"] * 0.3, top + box["height"] * 0.5, steps=8)
    look.mouse.up()
    look.wait_for_function(
        f"[...document.querySelectorAll('[data-testid=stText]')].some(one => "
        f"/^\\d+ rows lie inside/.test(one.innerText) && parseInt(one.innerText) < {total})"
    )


def test_a_download_holds_the_answer(desk):
    look = desk.open("query")
    look.get_by_label("SQL").fill("SELECT id, chosen FROM subset WHERE version = 'v1' ORDER BY id")
    look.keyboard.press("Control+Enter")
    look.get_by_text("Download CSV").wait_for()
    rows = read_table(desk.root / "data/selection/version=v1/subset.parquet").sort_by("id").select(["id", "chosen"])
    for form in ("CSV", "JSONL", "Parquet"):
        with look.expect_download() as waited:
            look.get_by_text(f"Download {form}").click()
        path = desk.root / waited.value.suggested_filename
        waited.value.save_as(path)
        if form == "CSV":
            assert path.read_text().splitlines() == [
                "id,chosen",
                *(f"{r['id']},{r['chosen']}" for r in rows.to_pylist()),
            ]
        elif form == "JSONL":
            assert [json.loads(line) for line in path.read_text().splitlines()] == rows.to_pylist()
        else:
            assert pq.read_table(path).to_pylist() == rows.to_pylist()


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("DROP VIEW subset", "DROP is not answered"),
        ("SELECT * FROM read_text('/etc/passwd')", "reads these views and nothing else"),
        pytest.param(ENDLESS, "no answer within", marks=pytest.mark.slow),
    ],
)
def test_questions_that_are_not_answered(desk, sql, told):
    look = desk.open("query")
    look.get_by_label("SQL").fill(sql)
    look.keyboard.press("Control+Enter")
    look.get_by_text(told).first.wait_for(timeout=40_000)


def test_an_approval_stands_in_the_file_and_on_the_page(desk):
    look = desk.open("sign-off")
    look.get_by_label("Version to read and approve").click()
    look.get_by_role("option", name="v1", exact=True).click()
    look.get_by_text("Checks of v1").wait_for()
    look.get_by_label("Your name").fill("Ann")
    look.get_by_role("button", name="Approve v1").click()
    look.get_by_text("v1 is approved by Ann").wait_for()
    (line,) = (desk.root / "data/approvals.jsonl").read_text().splitlines()
    assert json.loads(line)["by"] == "Ann"
    look = desk.open("sign-off")
    assert look.get_by_text("v1: approved, by Ann").count() == 1
