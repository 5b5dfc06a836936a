"""The desk's pages, run without a browser: counts are those of SQL, and text of data is text."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from streamlit.testing.v1 import AppTest
from worlds.projects import ROOT, Project, enter, enter_copy, run_stages, toy_row

from tasks.artifacts.tables import read_table
from tasks.artifacts.views import opened
from tasks.catalogue import browsing
from tasks.catalogue.sources import find_artifacts

APP = str(ROOT / "flows/desk/app.py")
HOSTILE = "<script>alert(1)</script> **bold** $x^2$ [a](javascript:b) \u202e\x07 `code`"


@pytest.fixture(scope="module")
def made(real_unrun, tmp_path_factory) -> Project:
    """Two versions, some of whose rows say what a page could take for markup."""
    project = Project(Path(shutil.copytree(real_unrun.root, tmp_path_factory.mktemp("desk") / "project")))
    with pytest.MonkeyPatch.context() as patch:
        enter(project, patch)
        path = project.root / "data/raw/v1/toys.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for place, row in enumerate(rows):
            row["response"] += f" {HOSTILE}" if place % 5 == 0 else ""
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_stages("v1")
        (project.root / "data/raw/v2").mkdir()
        (project.root / "data/raw/v2/toys.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*rows[4:], *map(toy_row, range(40, 60))])
        )
        settings = yaml.safe_load((project.root / "params.yaml").read_text())
        settings["versions"]["v2"] = {"raw": "data/raw/v2", "previous": "v1"}
        (project.root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        run_stages("v2", until="selection")
    return project


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder."""
    return enter_copy(made, tmp_path / "project", monkeypatch)


def look(page: str, **state: str) -> AppTest:
    """Open a page in a state, as a link does."""
    desk = AppTest.from_file(APP, default_timeout=60)
    desk.query_params["page"] = page
    for name, value in state.items():
        desk.query_params[name] = value
    desk.run()
    assert not desk.exception
    return desk


def read_text(desk: AppTest) -> str:
    return "\n".join(one.value for one in [*desk.text, *desk.header, *desk.subheader, *desk.caption])


def count(version: str, **asked) -> tuple[int, str]:
    found = find_artifacts(Path("."))
    with opened(found.views, derived=found.derived) as connection:
        counted = browsing.count_rows(connection, browsing.Filter(version, **asked))
    return counted.rows, counted.digest


def test_the_overview_says_of_each_version_what_it_is_worth(project):
    said = read_text(look("overview"))
    assert "2 of 2 versions are made." in said
    assert "than chance on held-out rows" in said or "no different from chance on held-out rows" in said
    assert "not approved" in said


@pytest.mark.parametrize("state", browsing.STATES)
def test_a_filter_counts_what_sql_counts(project, state):
    rows, digest = count("v1", state=state)
    assert f"{rows:,} rows, digest {digest}" in read_text(look("rows", version="v1", state=state))


def test_counts_are_those_of_the_artifacts(project):
    subset = read_table(Path("data/selection/version=v1/subset.parquet")).to_pylist()
    assert count("v1", state="chosen")[0] == sum(row["chosen"] for row in subset)
    examples = read_table(Path("data/examples/version=v1/examples.parquet")).to_pylist()
    assert count("v1")[0] == len({row["id"] for row in examples})
    assert count("v1", topic="sums")[0] == len({row["id"] for row in examples if row["topic"] == "sums"})
    assert count("v1", words="GREETINGS")[0] == len({row["id"] for row in examples if "greetings" in row["prompt"]})
    tokens = [row["response_tokens"] for row in subset]
    middle = sorted(tokens)[len(tokens) // 2]
    assert count("v1", score="response_tokens", low=middle)[0] == sum(one >= middle for one in tokens)


def test_digests_tell_sets_apart_and_no_orders(project):
    assert count("v1", topic="sums")[1] != count("v1", topic="letters")[1]
    assert count("v1", topic="none")[1] == "0"


def test_pages_hold_each_row_once(project):
    found = find_artifacts(Path("."))
    with opened(found.views, derived=found.derived) as connection:
        asked = browsing.Filter("v1")
        sheets = [browsing.list_rows(connection, asked, page=page, size=7) for page in range(6)]
    ids = [row["id"] for sheet in sheets for row in sheet]
    assert len(ids) == len(set(ids)) == count("v1")[0]
    assert len(sheets[0]) == 7


def test_a_link_opens_a_row_with_its_story(project):
    row = read_table(Path("data/selection/version=v1/subset.parquet")).to_pylist()[0]
    said = read_text(look("rows", version="v1", id=row["id"]))
    assert f"Row {row['id']}: chosen" in said
    assert "It was chosen by delift as number 1" in said
    assert "assistant, learnt" in said


def test_text_of_data_is_never_markup(project):
    examples = read_table(Path("data/examples/version=v1/examples.parquet")).to_pylist()
    row = next(row for row in examples if HOSTILE in row["response"] and row["used"] and row["split"] == "pool")
    desk = look("rows", version="v1", id=row["id"])
    assert any(HOSTILE in one.value for one in desk.text)
    for one in (*desk.markdown, *desk.header, *desk.subheader, *desk.caption, *desk.error, *desk.info):
        assert "script" not in one.value
    assert any(HOSTILE in value for value in desk.dataframe[0].value["response"])


def test_differences_are_those_of_the_command(project):
    from tasks.catalogue.diffs import compare, read_side

    found = compare(*(read_side(version, Path("."), version) for version in ("v1", "v2")))
    enters = sum(row["change"] == "enters" for row in found.rows)
    said = read_text(look("diff", before="v1", after="v2"))
    assert f"{enters:,} rows enter, {len(found.rows) - enters:,} leave, {found.both:,} are chosen in both." in said


def test_an_approval_is_written_and_shown(project):
    desk = look("sign-off")
    desk.selectbox[0].set_value("v1")
    desk.text_input[0].set_value("Ann")
    desk.text_area[0].set_value(HOSTILE)
    desk.button[0].click()
    desk.run()
    assert not desk.exception
    assert "v1 is approved by Ann" in read_text(desk)
    (line,) = Path("data/approvals.jsonl").read_text().splitlines()
    assert json.loads(line)["note"] == HOSTILE
    assert "v1: approved, by Ann" in read_text(look("sign-off"))


def test_what_is_not_made_is_not_approved(project):
    desk = look("sign-off")
    desk.selectbox[0].set_value("v2")
    desk.button[0].click()
    desk.run()
    assert desk.error[0].value == "It is not approved."
    assert "`tamis run v2` first" in read_text(desk)
    assert not Path("data/approvals.jsonl").exists()


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT count(*) AS n FROM subset", "1 rows"),
        ("DROP VIEW subset", "DROP is not answered"),
        ("SELECT * FROM read_text('/etc/passwd')", "reads these views and nothing else"),
        ("SELEKT", "syntax error"),
    ],
)
def test_questions_are_answered_and_nothing_else_is_done(project, sql, text):
    desk = look("query")
    desk.text_area[0].set_value(sql).run()
    assert not desk.exception
    assert text in read_text(desk)


def test_without_artifacts_it_says_what_to_do(project):
    shutil.rmtree("data/selection")
    shutil.rmtree("data/examples")
    for page in ("overview", "rows", "diff", "sign-off", "query"):
        look(page)
    for place in Path("data").glob("*/version=*"):
        shutil.rmtree(place)
    assert "there are no artifacts in data yet; make them: `tamis run`" in read_text(look("rows"))


def test_a_damaged_artifact_costs_its_own_view(project):
    path = Path("data/utility/version=v1/utility.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    desk = look("rows", version="v1")
    assert any("utility cannot be read" in one.value for one in desk.error)
    assert "rows, digest" in read_text(desk)
