"""`tamis why`, `tamis diff` and `tamis audit` on the real graph with the toy model and two versions."""

import io
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from worlds.commands import ask, tamis
from worlds.projects import Project, run_stages

from flows import params
from flows.entering import SHARES, add_to_budget, choose_by, count_room, try_budgets
from flows.stage_calls import folder
from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, read_table, write_table


@pytest.fixture
def project(two_versions) -> Project:
    """Two versions, as the current folder."""
    return two_versions


def read_subset(version: str) -> list[dict]:
    return read_table(folder("selection", version) / "subset.parquet").to_pylist()


def tell(id: str, *options: str) -> str:
    return "\n".join(one["sentence"] for one in ask("why", id, *options))


def test_of_a_chosen_row_rank_gain_and_topic_are_told(project):
    first = read_subset("v1")[0]
    said = tell(first["id"], "--version", "v1")
    chosen = sum(row["chosen"] for row in read_subset("v1"))
    assert f"It was chosen by delift as number 1 of {chosen}, and added {first['gain']:.4g} to the objective" in said
    assert re.search(
        rf"Of its topic, {first['topic']}, \d+ of \d+ rows were chosen, of at most 2, which is not reached\.", said
    )


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        ("choice", "It was chosen by delift as"),
        ("chance", "It was chosen by chance, which a pilot took in place of delift as"),
        ("mixture", "It was chosen by the mixture that a pilot took (delift for half of the budget, then chance) as"),
    ],
)
def test_what_a_pilot_took_is_not_called_the_selectors(project, decision, told):
    path = folder("selection", "v1") / "selection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pilot": {"decision": decision}}))
    assert told in tell(read_subset("v1")[0]["id"], "--version", "v1")


def test_of_a_row_that_gained_nothing_is_told_what_it_was_taken_by(project):
    path, last = folder("selection", "v1") / "subset.parquet", [row for row in read_subset("v1") if row["chosen"]][-1]
    rows = [row | {"gain": 0.0} if row["id"] == last["id"] else row for row in read_subset("v1")]
    write_table(pa.Table.from_pylist(rows, schema=schemas.SUBSET), path, Provenance("selection", "v1"))
    assert (
        f"as number {last['rank']} of {last['rank']}: nothing was left to gain, so that rows follow by quality, then "
        "by how little others cover them."
    ) in tell(last["id"], "--version", "v1")


def test_of_a_row_that_was_left_out_both_texts_are_told(project):
    rows = {row["id"]: row for row in ask_rows("v1")}
    left = next(row for row in read_subset("v1") if not row["chosen"] and row["covered_by"])
    said = tell(left["id"], "--version", "v1")
    assert f"the chosen row {left['covered_by']} stands for it best, by {left['cover']:.4g}" in said
    for text in (rows[left["id"]]["prompt"], rows[left["covered_by"]]["response"]):
        assert f'"{text}"' in said


def ask_rows(version: str) -> list[dict]:
    return read_table(
        folder("examples", version) / "examples.parquet", columns=["id", "prompt", "response", "split", "used"]
    ).to_pylist()


def test_partners_are_those_of_the_largest_utility(project):
    pairs = read_table(folder("utility", "v1") / "utility.parquet").to_pylist()
    best = max((one for one in pairs if one["demo_id"] != one["target_id"]), key=lambda one: one["utility"])
    said = tell(best["demo_id"], "--version", "v1")
    assert f"Shown in context, it helps most {best['target_id']} by {best['utility']:.3f}" in said


def test_rows_that_are_no_choice_are_told_why(project):
    ask_held = "SELECT id FROM examples WHERE version = 'v1' AND split = 'held_out' LIMIT 1"
    ((held),) = json.loads(tamis("sql", ask_held, "--json").stdout)
    assert tell(held["id"], "--version", "v1") == "It was not chosen from: it is of the held-out rows."


def test_the_smallest_budget_that_takes_a_row_is_found(project):
    subset = read_subset("v1")
    said = tell(subset[0]["id"], "--version", "v1", "--budgets")
    assert "A budget of 10% of the pool takes it" in said
    last = tell(subset[-1]["id"], "--version", "v1", "--budgets")
    share = int(re.search(r"A budget of (\d+)% of the pool takes it", last)[1])
    assert share > 10


def test_budgets_are_tried_as_far_as_gate_and_caps_leave_rows(project):
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["selection"] |= {"gate": {"by": "agreement", "drop": 0.2}, "caps": {"sums": 3}}
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run_stages("v1", until="selection")
    subset = read_subset("v1")
    room = count_room("v1", params.read())
    passed = [row["topic"] for row in subset if not row["gated"]]
    assert room.room == len(passed) - max(0, passed.count("sums") - 3) < room.pool == len(subset)
    tried = list(try_budgets("v1", params.read()))
    assert [one.rows for one in tried] == sorted(
        {min(max(1, int(share * room.pool + 1e-9)), room.room) for share in SHARES}
    )
    last = next(row for row in reversed(subset) if not row["gated"])
    done = tamis("why", last["id"], "--version", "v1", "--budgets")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"budget": {"count": 10}}, {"budget": {"count": 11}}),
        ({"budget": {"fraction": 0.4}, "floors": {"sums": 4}, "caps": {"greetings": 2}}, None),
        ({"budget": {"response_tokens": 60}}, {"budget": {"response_tokens": 66}}),
        ({"budget": {"count": 10}, "pilot": {"steps": 1, "seeds": 1, "rows": 0.2}}, {"budget": {"count": 11}}),
    ],
)
def test_a_tenth_more_changes_what_such_a_budget_changes(project, settings, more):
    def choose(wanted):
        values = yaml.safe_load(Path("params.yaml").read_text())
        values["selection"] |= {"floors": {}, "caps": {}, "pilot": None, **wanted}
        values["examples"]["validation_every"] = 5 if "pilot" in settings else None
        Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        run_stages("v1", until="selection")
        return {row["id"] for row in read_subset("v1") if row["chosen"]}

    choose(settings)
    added = add_to_budget("v1", params.read(), 1.1)
    before = choose(settings | {"pilot": None})
    more = more or {"budget": {"count": max(len(before) + 1, round(len(before) * 1.1))}}
    after = choose(settings | {"pilot": None} | more)
    assert (added.before, added.rows, added.left) == (len(before), len(after), len(before - after))
    assert added.ids == sorted(after - before)


def test_budgets_below_the_floors_are_none(project):
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["selection"] |= {"budget": {"fraction": 0.5}, "floors": {"sums": 4, "greetings": 4}}
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    run_stages("v1", until="selection")
    tried = list(try_budgets("v1", params.read()))
    assert min(one.rows for one in tried) >= 8
    topics = {row["id"]: row["topic"] for row in read_subset("v1")}
    for one in tried:
        assert [topics[id] for id in one.ids].count("sums") >= 4


def test_a_choice_is_made_again_by_the_settings_that_it_records(project):
    def look():
        tried = [sorted(one.ids) for one in try_budgets("v1", params.read())]
        return tried, choose_by("longest", "v1", params.read()), add_to_budget("v1", params.read(), 1.1)

    before = look()
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["selection"] |= {"selector": "random", "seed": 5, "budget": {"count": 1}, "caps": {"sums": 1}}
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert look() == before
    assert tamis("why", read_subset("v1")[0]["id"], "--budgets").exit_code == 0


def test_budgets_are_tried_of_the_versions_alone_that_could_choose_the_row(project):
    for place in Path("data").glob("*/version=v2"):
        shutil.rmtree(place)
    said = ask("why", read_subset("v1")[0]["id"], "--budgets")
    assert {one["version"] for one in said} == {"v1"}
    assert any("of the pool takes it" in one["sentence"] for one in said)


def test_a_choice_of_other_examples_is_told_before_all_else(project):
    row = next(row for row in read_subset("v1") if row["chosen"])["id"]
    assert "made of other examples" not in tell(row, "--version", "v1")
    with open("data/raw/v1/toys.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "one more", "response": "of them"}) + "\n")
    run_stages("v1", until="examples")
    said = json.loads(tamis("why", row, "--version", "v1", "--format", "json").stdout)
    assert said[0]["sentence"].startswith("The choice was made of other examples than those of v1 now, so what follows")


def test_every_version_that_has_the_row_is_told_of(project):
    kept = {row["id"] for row in read_subset("v1")} & {row["id"] for row in ask_rows("v2")}
    told = ask("why", min(kept))
    assert {one["version"] for one in told} == {"v1", "v2"}


def test_why_is_text_for_people(project):
    done = tamis("why", read_subset("v1")[0]["id"][:12], "--version", "v1")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{read_subset('v1')[0]['id']} in v1: chosen\nIt was chosen by delift")


def test_rows_that_enter_and_leave_are_told_with_the_reason(project):
    rows = ask("diff", "v1", "v2")
    before, after = ({row["id"] for row in read_subset(one) if row["chosen"]} for one in ("v1", "v2"))
    assert {row["id"] for row in rows if row["change"] == "enters"} == after - before
    assert {row["id"] for row in rows if row["change"] == "leaves"} == before - after
    assert {row["reason"] for row in rows if row["prompt"].startswith("more ")} == {"new row"}
    gone = {row["id"] for row in ask_rows("v1")} - {row["id"] for row in ask_rows("v2")}
    for row in rows:
        if row["change"] == "leaves":
            told = row["reason"] == "is withdrawn" or row["reason"].startswith("is edited to ")
            assert told == (row["id"] in gone)


def test_two_revisions_are_compared(project):
    project.edit("params.yaml", "selector: delift", "selector: longest")
    run_stages("v1")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "longest")
    done = tamis("diff", "data-v1", "HEAD", "--of", "v1", "--format", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)
    assert re.search(r"loss of chosen: \d\.\d{4} \(\d\.\d{4} to \d\.\d{4}\), then ", done.stderr)
    assert "held-out rows" not in done.stderr  # they are the same ones


def test_losses_of_other_held_out_rows_are_called_that(project):
    before, after = (
        {row["id"] for row in ask_rows(one) if row["split"] == "held_out" and row["used"]} for one in ("v1", "v2")
    )
    said = f"{len(before)} then {len(after)}, of which {len(before & after)} are the same"
    assert before != after
    assert f"the losses are of other held-out rows: {said}" in tamis("diff", "v1", "v2").stderr


def test_a_version_that_is_not_made_is_told_how_to_make_it(project):
    for stage in ("examples", "selection", "evaluation"):
        shutil.rmtree(f"data/{stage}/version=v2")
    for words, text in (
        (["show", "v2"], "nothing of v2 is made yet; make it: `tamis run v2`"),
        (["diff", "v1", "v2"], "nothing was chosen in v2 yet; make it: `tamis run v2`"),
    ):
        done = tamis(*words)
        assert done.exit_code == 1
        assert text in " ".join(done.stderr.split())


def test_an_unknown_selector_is_refused_before_the_other_one_chooses(project, monkeypatch):
    monkeypatch.setattr("flows.entering.choose_by", lambda *asked: pytest.fail("chosen by"))
    done = tamis("diff", "embedding", "delit", "--of", "v1", "--selectors")
    assert done.exit_code == 1
    assert "'delit' is no selector" in done.stderr


def test_two_selectors_are_compared_at_the_versions_budget(project):
    rows = ask("diff", "delift", "longest", "--of", "v1", "--selectors")
    chosen = {row["id"] for row in read_subset("v1") if row["chosen"]}
    assert {row["id"] for row in rows if row["change"] == "leaves"} <= chosen
    assert len({row["change"] for row in rows}) == 2
    reasons = {row["reason"] for row in rows if row["change"] == "leaves"}
    length = {row["id"]: row["response_tokens"] for row in read_subset("v1")}
    lowest = min(length[row["id"]] for row in rows if row["change"] == "enters")
    told = {f"is below the lowest chosen by longest: {one} < {lowest}" for one in set(length.values()) if one < lowest}
    assert reasons <= told | {f"is behind others that tie with it, by longest: {lowest}"}
    entered, left = ([length[row["id"]] for row in rows if row["change"] == change] for change in ("enters", "leaves"))
    assert min(entered) >= max(left)
    assert ask("diff", "delift", "delift", "--of", "v1", "--selectors") == []


def test_rows_are_found_by_words(project):
    done = tamis("show", "GREETINGS 2?", "--find", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["prompt"] for row in found} <= {f"greetings {k}?" for k in range(40)}
    assert found[0]["prompt"] == "greetings 2?"
    assert found[0]["versions"] in ("v1", "v1 v2")
    assert "examples that say this" not in done.stderr
    many = tamis("show", "?", "--find", "--json")
    assert len(json.loads(many.stdout)) == 20
    assert re.search(r"20 of \d\d examples that say this, those first that say it most; give more words", many.stderr)
    Path("data/selection/version=v1/subset.parquet").write_text("no table")
    Path("data/selection/version=v2/subset.parquet").write_text("no table")
    done = tamis("show", "?", "--find", "--json")
    assert {row["chosen"] for row in json.loads(done.stdout)} == {None}
    assert "whether they were chosen is not known" in done.stderr
    for words, text in (("  ", "no word is given"), ("zebra", "no example says all of 'zebra'; ask for fewer words")):
        done = tamis("show", words, "--find")
        assert done.exit_code == 1
        assert text in done.stderr


def test_a_choice_beside_itself_differs_in_nothing(project):
    assert ask("diff", "v1", "v1") == []


def test_the_audit_names_each_check_and_fails_where_one_is_broken(project):
    rows = ask("audit", "v1")
    assert {row["state"] for row in rows} == {"kept", "shown"}
    assert len(rows) == len(read_table(folder("audit", "v1") / "audit.parquet"))
    raw = project.root / "data/raw/v1/toys.jsonl"
    raw.write_text(raw.read_text() + "\n")
    done = tamis("audit", "v1", "--format", "json")
    assert done.exit_code == 1
    (broken,) = (row for row in json.loads(done.stdout) if row["state"] == "broken")
    assert broken["check"] == "provenance"
    assert "1 of 18 promises are broken" in done.stderr


def test_versions_that_are_not_made_are_told_of_and_not_checked(project):
    shutil.rmtree("data/evaluation/version=v2")
    done = tamis("audit")
    assert done.exit_code == 0, done.output
    assert "v2 is not made yet, and not checked: `tamis run v2`" in done.stderr
    shutil.rmtree("data/evaluation/version=v1")
    done = tamis("audit")
    assert done.exit_code == 1
    assert "no data version is made yet; `tamis run` makes them" in done.stderr


def test_what_does_not_exist_is_refused(project):
    for words, text in (
        (["why", "zz"], "no example's id begins with 'zz'; `tamis show WORDS --find` lists those that say some words"),
        (["show", "v9"], "there is no data version 'v9'; params.yaml has v1, v2"),
        (["audit", "v9"], "there is no data version 'v9'"),
        (["diff", "v1", "v9"], "there is no data version 'v9'"),
        (["why", "0", "--version", "v9"], "there is no data version 'v9'"),
        (["diff", "data-v1", "data-v1", "--of", "v2"], "data-v1 records no choice of v2"),
        (["replay", "v2"], "v2 is not recorded; `tamis continue` records it, or name a --revision"),
        (["erase", "0" * 32, "--because", " "], "--because is empty"),
        (["approve", "v1", "--by", " "], "nobody signs: no name is given"),
        (["sql", "SELECT 1; SELECT 2"], "a text of 2 statements is not answered"),
        (["sql", " "], "an empty text is not answered"),
        (["diff", "delift", "delit", "--of", "v1", "--selectors"], "'delit' is no selector (did you mean 'delift'?)"),
        (
            ["diff", "delift", "longest", "--selectors"],
            "--selectors compares choices of one version: name it, with --of",
        ),
        (["why", "0", "--json", "--format", "csv"], "--json and --format csv ask for two forms; give one of them"),
        (["diff", "v1", "v2", "--format", "xml"], "'xml' is no format; known: table, json, csv, parquet"),
    ):
        done = tamis(*words)
        assert done.exit_code == 1, done.output
        assert text in done.stderr


def test_parquet_holds_what_json_does(project):
    done = tamis("diff", "v1", "v2", "--format", "parquet")
    assert pq.read_table(io.BytesIO(done.stdout_bytes)).to_pylist() == ask("diff", "v1", "v2")
