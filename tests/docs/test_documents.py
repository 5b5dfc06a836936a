"""README.md and docs/ keep to their size, lead where they say, and agree with params.yaml, recipes and Makefile."""

import json
import re
from pathlib import Path

import pytest
from worlds.documents import list_pages, read_targets
from worlds.projects import ROOT

from flows import params

PAGES = list_pages()
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Git hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_150_lines():
    assert len(read("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_project_lead_somewhere(page):
    for link in LINK.findall(read(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page} links to {link}"


def test_the_readme_tells_the_study_as_it_stands():
    page, pools = read("README.md"), json.loads(read("docs/results/study.json"))["pools"]

    def nats(pool: str) -> str:
        return f"{-pools[pool]['default_minus_chance']:.2f}"

    targets = sorted(map(nats, ("mixture-target", "rare-command", "rare-svamp")))
    assert f"(by {nats('noisy-across-20')} and {nats('noisy-across-50')} nats at a budget of 30%)" in page
    assert f"where one is named (by {targets[0]} to {targets[-1]}, at 30%" in page
    quiet = {name: pools[name] for name in pools if name.startswith(("clean-", "versions-"))}
    assert all(pool["high"] > 0 for pool in quiet.values())
    worse = {name: pool for name, pool in quiet.items() if pool["low"] > 0}
    assert {name: pool["budget"] for name, pool in worse.items()} == {"clean-dialogues": 0.1}
    mean, low, high = (worse["clean-dialogues"][name] for name in ("default_minus_chance", "low", "high"))
    assert f"a higher loss (by {mean:.2f}, 95% {low:.2f} to {high:.2f})" in page


def test_every_page_is_linked():
    linked = {
        str(((ROOT / page).parent / link.partition("#")[0]).resolve().relative_to(ROOT))
        for page in PAGES
        for link in LINK.findall(read(page))
        if not link.startswith(("http", "#"))
    }
    assert {page for page in PAGES if page not in ("README.md", "docs/README.md")} - linked == set()


def test_the_committed_params_are_what_recipe_demo_gives():
    text = read("params.yaml")
    assert params.merge(text, read("recipes/demo.yaml"), "recipes/demo.yaml") == text


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_for_and_is_accepted(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    params.merge(read("params.yaml"), text, path.name)


def test_the_demo_changes_no_tracked_source_file(world):
    """The toy project has run as `make demo` runs this one: by `tamis run`."""
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)[1]
    assert set(re.findall(r"\$\(BIN\)/tamis (\w+)", demo)) <= {"run", "repeats"}
    changed = world.project.git("status", "--porcelain", "--untracked-files=no")
    assert changed == ""


@pytest.mark.parametrize("page", PAGES)
def test_make_lines_name_targets_of_the_makefile(page):
    named = set(re.findall(r"`make ([a-z][\w-]*)", read(page)))
    assert named <= read_targets()
