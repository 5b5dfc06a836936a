"""The desk on the demo's real data: six questions answered as docs/how-to/desk.md says, and pictures of its pages.

TAMIS_DEMO names a folder in which `make demo` has run; else it is run here, which takes minutes. The mask is that of
recipe masked on the same rows, which a copy of the demo scores gradients for. Where TAMIS_PICTURES names a folder, the
pictures are written there.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from worlds.browsers import CHROMIUM, Desk, served, serving
from worlds.projects import ROOT, environment

from tasks.artifacts.tables import read_json, read_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
SQL = """SELECT version, topic, count(*) AS pool, count(*) FILTER (chosen) AS chosen
FROM subset GROUP BY ALL ORDER BY ALL"""
PICTURES = {  # page -> height in pixels, and its state
    "overview": (700, {}),
    "rows": (1500, {"version": "v2", "state": "left out"}),
    "map": (1300, {"version": "v2"}),
    "gains": (900, {"version": "v2"}),
    "pairs": (1300, {"version": "v2"}),
    "diff": (1150, {"before": "v1", "after": "v2"}),
    "chain": (1080, {}),
    "sign-off": (1000, {}),
    "query": (900, {"sql": quote(SQL)}),
}
MINUTE = 60.0  # seconds that a question may take


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Desk]:
    """The desk of a copy of a demo that has run."""
    root = tmp_path_factory.mktemp("demo") / "tamis"
    if "TAMIS_DEMO" in os.environ:
        shutil.copytree(os.environ["TAMIS_DEMO"], root, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    else:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
        command = [sys.executable, "-m", "flows.cli", "run", "--engine", "local"]
        subprocess.run(command, cwd=root, env=environment(PYTHONPATH=str(root)), check=True)
    with served(root) as desk:
        yield desk


@pytest.fixture(scope="module")
def masked(demo, tmp_path_factory) -> Iterator[Desk]:
    """The desk of a copy of the demo in which v1 has DualSFT's mask; what comes after it is not made anew."""
    root = tmp_path_factory.mktemp("masked") / "tamis"
    shutil.copytree(demo.root, root, symlinks=True)
    env = environment(PYTHONPATH=str(root))
    subprocess.run([sys.executable, "-m", "flows.cli", "recipe", "masked"], cwd=root, env=env, check=True)
    for stage in ("examples", "embedding", "utility", "scores", "gradients", "selection"):
        subprocess.run([sys.executable, "-m", "flows.stage", stage, "v1"], cwd=root, env=env, check=True)
    with serving(root) as url:
        yield replace(demo, root=root, url=url)


@pytest.fixture
def out(tmp_path) -> Path:
    """Where pictures are written."""
    folder = Path(os.environ.get("TAMIS_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_picture_of_a_mask(masked, out):
    look = masked.open("mask", height=1000, version="v1")
    look.wait_for_timeout(1500)
    look.screenshot(path=out / "desk-mask.png")
    settings = read_json(masked.root / "data/selection/version=v1/selection.json")["mask"]
    assert settings["chosen"] > 0
    look.get_by_text("weights are trained").wait_for()


def test_pictures_of_all_pages_but_the_mask(demo, out):
    for page, (height, state) in PICTURES.items():
        look = demo.open(page, height=height, **state)
        if page == "rows":
            look.locator("h2").click()
            look.keyboard.press("n")
            look.get_by_role("heading", name=": left out").wait_for()
            look.wait_for_timeout(1000)
        look.wait_for_timeout(1500)  # pictures are drawn after the page's script
        look.screenshot(path=out / f"desk-{page}.png")
        look.close()
    assert all((out / f"desk-{page}.png").stat().st_size > 0 for page in PICTURES)


@pytest.fixture
def watch() -> Iterator[None]:
    """See that a question is answered within a minute."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < MINUTE


@pytest.mark.usefixtures("watch")
class TestQuestions:
    """Without SQL, each from the first page on."""

    def test_which_rows_of_a_topic_were_dropped_and_why(self, demo):
        look = demo.open("overview")
        pick(look, "rows")
        choose(look, "State", "left out")
        choose(look, "Topic", "tech_support")
        subset = read_table(demo.root / "data/selection/version=v2/subset.parquet").to_pylist()
        left = [row for row in subset if row["topic"] == "tech_support" and not (row["chosen"] or row["gated"])]
        look.get_by_text(f"{len(left)} rows, digest").wait_for()
        look.get_by_role("button", name="Next row").click()
        look.get_by_text("It was not chosen").first.wait_for()

    def test_what_entered_since_the_first_version(self, demo):
        look = demo.open("overview")
        pick(look, "diff")
        look.get_by_text("rows enter").wait_for()

    def test_what_the_checks_found_of_held_out_rows_and_of_sources(self, demo):
        look = demo.open("overview")
        pick(look, "sign-off")
        audit = {row["check"]: row for row in read_table(demo.root / "data/audit/version=v2/audit.parquet").to_pylist()}
        for check in ("near_held_out", "source_shift"):
            row = look.get_by_role("row").filter(has=look.get_by_role("cell", name=check, exact=True))
            assert str(audit[check]["rows"]) in row.inner_text()
            assert audit[check]["detail"][:100] in row.inner_text()

    def test_who_approved_this_and_has_it_changed(self, demo):
        look = demo.open("overview")
        pick(look, "sign-off")
        look.get_by_text("v2: not approved").wait_for()

    def test_what_a_tenth_more_budget_would_add(self, demo):
        look = demo.open("overview")
        pick(look, "gains")
        look.get_by_role("button", name="Choose with a tenth more").click()
        look.get_by_text("would enter").wait_for(timeout=50_000)


def pick(look, page: str) -> None:
    """Go to a page."""
    look.locator("[data-testid=stSidebar]").get_by_text(page, exact=True).click()
    look.wait_for_timeout(500)


def choose(look, label: str, value: str) -> None:
    """Choose a value of a field."""
    look.get_by_label(label, exact=True).click()
    look.get_by_role("option", name=value, exact=True).click()
