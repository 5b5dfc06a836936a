"""The desk's pages, run without a browser: counts are those of SQL, and text of data is text."""

import json
import re
import shutil
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from streamlit.testing.v1 import AppTest
from worlds.desk_pages import APP, PAGES, look, read_tables, read_text
from worlds.projects import run_stages

from flows import params
from flows.desk import asking
from flows.entering import choose_by
from tasks.artifacts.tables import Provenance, read_table, write_table
from tasks.artifacts.views import opened
from tasks.browsing import filters
from tasks.browsing.places import make_places
from tasks.catalogue.rows import find
from tasks.catalogue.sources import find_artifacts


def count(version: str, **asked) -> tuple[int, str]:
    found = find_artifacts(Path("."))
    with opened(found.views, derived=found.derived) as connection:
        counted = filters.count_rows(connection, filters.Filter(version, **asked))
    return counted.rows, counted.digest


def test_the_overview_says_of_each_version_what_it_is_worth(project):
    said = read_text(look("overview"))
    assert "2 of 2 versions have a choice of rows; 1 of them are measured." in said
    assert "than chance on held-out rows" in said or "not clearly other than chance on held-out rows" in said
    assert "not approved" in said


@pytest.mark.parametrize("state", filters.STATES)
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


def test_words_are_those_of_every_turn_on_the_page_and_where_show_finds_them(project):
    path = Path("data/examples/version=v1/examples.parquet")
    table = read_table(path)
    rows = table.to_pylist()
    quiet = {"learnt": False, "details": ""}
    earlier = [
        {"role": "system", "content": "Speak as a Lighthouse keeper.", **quiet},
        {"role": "user", "content": "Who mends the lamp?", **quiet},
        {"role": "assistant", "content": "A keeper does.", **quiet},
    ]
    rows[0]["messages"] = [*earlier, *rows[0]["messages"]]
    write_table(pa.Table.from_pylist(rows, table.schema), path, Provenance("examples", "v1", {}, {}))
    assert count("v1", words="lighthouse LAMP does")[0] == 1
    assert [row[1] for row in find(Path("."), "lighthouse LAMP does")[1]] == [rows[0]["id"]]
    assert count("v1", words="lighthouse zebra")[0] == 0


def test_digests_tell_sets_apart_and_no_orders(project):
    assert count("v1", topic="sums")[1] != count("v1", topic="letters")[1]
    assert count("v1", topic="none")[1] == "0"


def test_pages_hold_each_row_once(project):
    found = find_artifacts(Path("."))
    with opened(found.views, derived=found.derived) as connection:
        asked = filters.Filter("v1")
        sheets = [filters.list_rows(connection, asked, record={}, page=page, size=7) for page in range(6)]
    ids = [row["id"] for sheet in sheets for row in sheet]
    assert len(ids) == len(set(ids)) == count("v1")[0]
    assert len(sheets[0]) == 7


def test_a_link_opens_a_row_with_its_story(project):
    row = read_table(Path("data/selection/version=v1/subset.parquet")).to_pylist()[0]
    said = read_text(look("rows", version="v1", id=row["id"]))
    assert f"Row {row['id']}: chosen" in said
    assert "It was chosen by delift as number 1" in said
    assert "assistant, learnt" in said


def test_text_of_data_is_never_markup(project, hostile):
    examples = read_table(Path("data/examples/version=v1/examples.parquet")).to_pylist()
    row = next(row for row in examples if hostile in row["response"] and row["used"] and row["split"] == "pool")
    desk = look("rows", version="v1", id=row["id"])
    assert any(hostile in one.value for one in desk.text)
    assert any(hostile in value for value in desk.dataframe[0].value["response"])
    make_places(Path("."), "v1")
    for page in PAGES:
        desk = look(page, version="v1", id=row["id"], before="v1", after="v2")
        for one in (*desk.markdown, *desk.header, *desk.subheader, *desk.caption, *desk.error, *desk.info):
            assert "script" not in one.value


def test_text_of_data_does_not_turn_the_words_beside_it_around(project, hostile):
    examples = read_table(Path("data/examples/version=v1/examples.parquet")).to_pylist()
    row = next(row for row in examples if row["topic"] == hostile and row["used"] and row["split"] == "pool")
    sentences = [one.value for one in look("rows", version="v1", id=row["id"]).text if "Of its topic" in one.value]
    assert len(sentences) == 1
    assert r"\u202e\x07" in sentences[0]
    assert "\u202e" not in sentences[0]


def test_differences_are_those_of_the_command(project):
    from tasks.catalogue.diffs import compare, read_side

    found = compare(*(read_side(version, Path("."), version) for version in ("v1", "v2")))
    enters = sum(row["change"] == "enters" for row in found.rows)
    desk = look("diff", before="v1", after="v2")
    said = read_text(desk)
    shown = [row["id"] for table in read_tables(desk) if "reason" in table[0] for row in table]
    assert sorted(shown) == sorted(row["id"] for row in found.rows)
    assert f"{enters:,} rows enter, {len(found.rows) - enters:,} leave, {found.both:,} are chosen in both." in said


def test_losses_of_other_held_out_rows_are_called_that(project):
    Path("data/evaluation/version=v2").mkdir(parents=True, exist_ok=True)
    shutil.copy("data/evaluation/version=v1/metrics.json", "data/evaluation/version=v2")
    told = "The losses are of other held-out rows"
    assert told in read_text(look("diff", before="v1", after="v2"))
    assert told not in read_text(look("diff", before="v1", after="v1"))


@pytest.mark.parametrize("page", ["overview", "sign-off"])
def test_settings_that_changed_since_a_version_was_made_are_told(project, page):
    said = "Changed since v1 was made: selection.seed of params.yaml. What stands here is of before."
    assert said not in read_text(look(page))
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["selection"]["seed"] += 1
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert said in read_text(look(page))


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT count(*) AS n FROM subset", "1 row"),
        ("SELECT hash(id) AS a, 170141183460469231731687303715884105727 AS b FROM subset LIMIT 2", "2 rows"),
        ("SELECT union_value(n := 1) AS f UNION ALL SELECT union_value(n := 2)", "2 rows"),
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


def test_numbers_beyond_64_bits_are_shown_and_taken_away_whole(project):
    sql = "SELECT sum(hash(id)) h FROM subset"
    names, rows = asking.ask(sql)
    ((whole,),) = rows
    assert whole > 2**64
    assert [one.value.to_dict("list") for one in look("query", sql=sql).dataframe] == [{"h": [whole]}]
    assert asking.write_csv_bytes(names, rows) == f"h\n{whole}\n".encode()
    assert json.loads(asking.write_lines(names, rows)) == {"h": str(whole)}
    assert pq.read_table(BytesIO(asking.write_table(names, rows))).to_pylist() == [{"h": whole}]


def test_a_question_that_hears_no_interruption_is_ended_and_the_page_goes_on(project, monkeypatch):
    monkeypatch.setattr(asking, "COMMAND", [*asking.COMMAND[:-1], "--seconds=0.2", "-"])
    desk = look("query", sql="SELECT list_sum(list_transform(range(50000000), lambda x: x * 2 + 1))")
    assert "no answer within 0.2 s; ask for less" in read_text(desk)
    desk.text_area[0].set_value("SELECT 1 AS one").run()
    assert "1 row" in read_text(desk)


def test_without_artifacts_it_says_what_to_do(project):
    shutil.rmtree("data/selection")
    shutil.rmtree("data/examples")
    for page in PAGES:
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


def test_chosen_and_left_out_stand_side_by_side(project):
    desk = look("rows", version="v1", state="chosen beside left out")
    for state in ("chosen", "left out"):
        rows, digest = count("v1", state=state)
        assert f"{state}: {rows:,} rows, digest {digest}" in read_text(desk)
    assert [set(one.value["state"]) for one in desk.dataframe] == [{"chosen"}, {"left out"}]


def test_rows_open_one_after_the_other(project):
    desk = look("rows", version="v1", state="chosen")
    ids = list(desk.dataframe[0].value["id"])
    for step, id in (("after", ids[0]), ("after", ids[1]), ("before", ids[0]), ("before", ids[0])):
        desk.button(key=step).click().run()
        assert f"Row {id}: chosen" in read_text(desk)


def test_a_frame_on_the_map_lists_what_lies_inside(project):
    assert "There is no map of this version" in look("map", version="v1").info[0].value
    places = make_places(Path("."), "v1").table.to_pylist()
    pool = {row["id"] for row in read_table(Path("data/selection/version=v1/subset.parquet")).to_pylist()}
    inside = {row["id"] for row in places if row["id"] in pool and row["x"] >= 0}
    assert "asks for abc as left, which is no number" in read_text(look("map", version="v1", left="abc"))
    desk = look("map", version="v1", left="0.0")
    assert f"{len(inside):,} rows lie inside." in read_text(desk)
    assert set(desk.dataframe[0].value["id"]) == inside


@pytest.mark.parametrize("colour", ["chosen", "topic", "gain", "mean_help"])
def test_the_map_is_drawn_in_any_colour(project, colour):
    make_places(Path("."), "v1")
    assert "rows lie inside." in read_text(look("map", version="v1", colour=colour))


def test_gains_name_the_budget_that_is_enough(project):
    subset = read_table(Path("data/selection/version=v1/subset.parquet")).to_pylist()
    grown = sorted((row["rank"], row["objective"]) for row in subset if row["objective"] is not None)
    enough = next(rank for rank, objective in grown if objective >= 0.95 * grown[-1][1])
    said = read_text(look("gains", version="v1"))
    assert f"{enough} of {len(grown)} chosen rows reach 95% of the objective" in said


@pytest.mark.parametrize(
    ("distance", "unit"), [("probability", "in root mean square of 1 - p"), ("log_likelihood", "nats a token")]
)
def test_pairs_show_a_row_beside_its_partners(project, distance, unit):
    path = Path("data/utility/version=v1/utility.parquet")
    table = read_table(path)
    write_table(table, path, Provenance("utility", "v1", {"distance": distance}, {}))
    (best, *_) = sorted(table.to_pylist(), key=lambda pair: (pair["demo_id"] == pair["target_id"], -pair["utility"]))
    said = read_text(look("pairs", version="v1", pair=best["target_id"][:16]))
    assert f"{best['utility']:+.4f} {unit}" in said
    assert re.search(rf"help rows of .* most: [+-]0\.\d+ {re.escape(unit)}, the mean of", said)
    assert best["demo_id"] in said


def test_the_chain_says_what_came_and_what_was_learnt(project):
    desk = look("chain")
    changes, learnt = read_tables(desk)
    examples = read_table(Path("data/examples/version=v2/examples.parquet")).to_pylist()
    added = {row["id"] for row in examples if row["change"] == "new" and row["split"] == "pool"}
    (found,) = (row["added"] for row in changes if (row["version"], row["split"]) == ("v2", "pool"))
    assert int(found) == len(added)
    assert {row["version"] for row in learnt} == {"v1"}


def test_two_revisions_are_compared(project):
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "made")
    desk = look("diff", compare="a version at two revisions of git", version="v1", **{"from": "HEAD", "to": "HEAD"})
    chosen, _ = count("v1", state="chosen")
    assert f"0 rows enter, 0 leave, {chosen} are chosen in both." in read_text(desk)
    desk = look("diff", compare="a version at two revisions of git", version="v1", **{"from": "HEAD", "to": "nowhere"})
    assert "nowhere" in read_text(desk)
    assert [one.value for one in desk.error] == ["This cannot be shown."]


def test_a_mask_is_shown_with_its_density(project):
    assert "This version has no mask" in look("mask", version="v1").info[0].value
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["mask"] = {"selector": "random"}
    settings["finetuning"]["method"] = "masked"
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run_stages("v2", until="selection")
    tensors = read_table(Path("data/selection/version=v2/tensors.parquet")).to_pylist()
    chosen, entries = (sum(row[name] for row in tensors) for name in ("chosen", "entries"))
    assert f"{chosen:,} of {entries:,} weights are trained, {chosen / entries:.2%}; densest in " in read_text(
        look("mask")
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_names_of_scores_are_those_that_a_row_has(project, version):
    found = find_artifacts(Path("."))
    with opened(found.views, derived=found.derived) as connection:
        sql = "SELECT DISTINCT score FROM scores WHERE version = $version ORDER BY 1"
        known = [name for (name,) in connection.execute(sql, {"version": version}).fetchall()]
        assert filters.list_values(connection, version, "score") == known
    assert "mean_help" in known


def test_two_selectors_are_compared_where_their_choices_are_kept(project):
    way = {"compare": "a version by two selectors", "version": "v1"}
    assert any("No two choices of v1 by selectors are kept." in one.value for one in look("diff", **way).info)
    state = way | {"first": "random", "second": "longest"}
    desk = look("diff", **state)
    assert [one.value for one in desk.error] == ["This cannot be shown."]
    assert "no choice of v1 by random is kept; make it: `tamis diff random OTHER" in read_text(desk)
    for selector in ("random", "longest"):
        choose_by(selector, "v1", params.read())
    for asked in (state, way):  # without names, those that are kept
        desk = look("diff", **asked)
        assert not desk.error
        assert [one.value for one in desk.selectbox if one.label in ("Before", "After")] == ["longest", "random"][
            :: 1 if asked is way else -1
        ]
        assert "are chosen in both." in read_text(desk)


@pytest.mark.parametrize(
    ("path", "text", "page"),
    [
        ("params.yaml", None, "overview"),
        ("data/selection/version=v2/selection.json", "[]", "overview"),
        ("data/evaluation/version=v1/metrics.json", '{"arms": {', "overview"),
        ("data/evaluation/version=v1/metrics.json", '{"arms": {', "diff"),
        ("data/evaluation/version=v1/metrics.json", '{"arms": []}', "diff"),
        ("data/evaluation/version=v1/metrics.json", '{"differences": {"chosen-random": 1}}', "overview"),
        ("versions/v2/decisions.json", '[{"id": 1}]', "sign-off"),
        ("data/approvals.jsonl", "{}", "sign-off"),
    ],
)
def test_a_damaged_record_is_named_with_the_way_out(project, path, text, page):
    if text is None:
        Path(path).unlink()
    else:
        Path(path).write_text(text)
    desk = AppTest.from_file(APP, default_timeout=60)
    desk.query_params["page"] = page
    desk.run()
    assert not desk.exception
    said = read_text(desk)
    assert Path(path).name in said
    assert text is None or re.search("restore it with|bring it back with|bring the file back with", said)
