"""Rows vetoed and pinned by command: the next selection honours it, the version before stays as it was."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from worlds.commands import tamis
from worlds.projects import Project, run_stages

from flows.graph import versions
from flows.stage_calls import folder
from tasks.artifacts.tables import read_table
from tasks.decisions import find_decisions, read_decisions


@pytest.fixture
def project(two_versions) -> Project:
    """Two versions, as the current folder."""
    return two_versions


def subset(version: str) -> dict[str, dict]:
    return {row["id"]: row for row in read_table(folder("selection", version) / "subset.parquet").to_pylist()}


def example(version: str, id: str) -> dict:
    rows = read_table(folder("examples", version) / "examples.parquet").to_pylist()
    return next(row for row in rows if row["id"] == id)


def pick(version: str, *, chosen: bool) -> str:
    """Return a row of a version's pool, chosen or not."""
    return next(id for id, row in subset(version).items() if row["chosen"] == chosen)


def test_a_vetoed_row_is_used_no_more_from_that_version_on(project):
    before, id = subset("v1"), pick("v2", chosen=True)
    done = tamis("veto", id[:12], "--because", "the answer is wrong", "--by", "Ann")
    assert done.exit_code == 0, done.output
    assert f"{id} is vetoed for v2; `tamis run v2` honours it" in done.stderr
    run_stages("v2", until="selection")
    assert id not in subset("v2")
    assert example("v2", id)["unused_because"] == "vetoed"
    assert subset("v1") == before
    (decision,) = json.loads(tamis("decisions", "--format", "json").stdout)
    assert decision | {"when": ""} == {
        "version": "v2",
        "id": id,
        "kind": "veto",
        "because": "the answer is wrong",
        "by": "Ann",
        "when": "",
    }
    said = tamis("why", id, "--version", "v2").stdout
    assert "not chosen from: it is vetoed" in " ".join(said.split())
    assert "Ann vetoed it" in said
    asked = tamis("sql", "SELECT kind, because FROM decisions", "--json").stdout
    assert json.loads(asked) == [{"kind": "veto", "because": "the answer is wrong"}]


def test_a_pinned_row_comes_first_and_is_listed_by_the_audit(project):
    id = pick("v1", chosen=False)
    assert tamis("pin", id, "--because", "a rule of ours", "--by", "Ann", "--version", "v1").exit_code == 0
    assert [one.kind for one in read_decisions(find_decisions(Path(), "v2"))] == ["pin"]
    run_stages("v1")
    assert subset("v1")[id]["rank"] == 1
    assert "It was chosen by that decision as number 1 of " in tamis("why", id, "--version", "v1").stdout
    rows = {row["check"]: row for row in json.loads(tamis("audit", "v1", "--format", "json").stdout)}
    assert rows["decided"]["detail"] == f"pin of {id}, by Ann: a rule of ours"
    assert rows["decisions"]["state"] == "kept"
    path = folder("selection", "v1") / "selection.json"
    assert json.loads(path.read_text())["pins"] == {"chosen": 1, "not_in_the_pool": 0}


def test_a_row_that_a_version_does_not_choose_from_is_not_pinned_there_but_where_the_pool_has_it(project):
    later = {row["id"]: row for row in read_table(folder("examples", "v2") / "examples.parquet").to_pylist()}
    kept = {id for id, row in later.items() if row["unused_because"] == "kept"}
    id = next(id for id, row in subset("v1").items() if not row["chosen"] and id in kept)
    for more in ((), ("--version", "v2")):
        done = tamis("pin", id, "--because", "good", "--by", "Ann", *more)
        assert done.exit_code == 1
        said = " ".join(done.stderr.split())
        assert f"{id} is not chosen from in v2: the version before has it, and only new rows are chosen from" in said
        assert "; --version v1 pins it where the pool has it" in said
    assert tamis("veto", id, "--because", "bad", "--by", "Ann").exit_code == 0
    assert tamis("pin", id, "--because", "good", "--by", "Ann", "--version", "v1").exit_code == 0
    run_stages("v1", until="selection")
    assert subset("v1")[id]["rank"] == 1


def test_a_vetoed_row_can_be_pinned_in_the_vetos_stead(project):
    id = pick("v2", chosen=True)
    assert tamis("veto", id, "--because", "bad", "--by", "Ann").exit_code == 0
    run_stages("v2", until="selection")
    assert example("v2", id)["unused_because"] == "vetoed"
    done = tamis("pin", id, "--because", "good after all", "--by", "Ann")
    assert done.exit_code == 0, done.output
    run_stages("v2", until="selection")
    assert subset("v2")[id]["rank"] == 1


def test_why_tells_a_decision_that_no_run_has_honoured(project):
    def why(id):
        return " ".join(tamis("why", id, "--version", "v1").stdout.split())

    late = "The choice was made before that, and does not honour it yet; `tamis run v1` does."
    first, second = pick("v1", chosen=True), pick("v1", chosen=False)
    assert tamis("pin", first, "--because", "so", "--by", "Ann", "--version", "v1").exit_code == 0
    assert "that decision" not in why(first)  # it was chosen before by the selector
    assert tamis("pin", second, "--because", "so", "--by", "Ann", "--version", "v1").exit_code == 0
    assert late in why(second)
    run_stages("v1")
    assert late not in why(second)
    assert "It was chosen by that decision as number" in why(second)
    assert tamis("release", second, "--version", "v1").exit_code == 0
    assert "It was chosen by a pin that is taken back since as number" in why(second)
    assert tamis("veto", first, "--because", "so", "--by", "Ann", "--version", "v1").exit_code == 0
    assert late in why(first)


def test_the_audit_finds_a_choice_that_was_made_before_the_veto(project):
    id = pick("v1", chosen=True)
    assert tamis("veto", id, "--because", "wrong", "--by", "Ann", "--version", "v1").exit_code == 0
    done = tamis("audit", "v1", "--format", "json")
    assert done.exit_code == 1
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert rows["decisions"]["detail"] == f"{id} is vetoed and chosen"
    refused = tamis("approve", "v1", "--by", "Ann")
    assert refused.exit_code == 1
    assert "versions/v1/decisions.json" in refused.stderr


def test_a_decision_replaces_the_one_before_and_is_taken_back(project):
    id = pick("v2", chosen=True)
    for kind, told in (("veto", ""), ("pin", "in place of Ann's veto of ")):
        done = tamis(kind, id, "--because", "so", "--by", "Ann")
        assert done.exit_code == 0
        assert told in done.stderr
    assert [one.kind for one in read_decisions(find_decisions(Path(), "v2"))] == ["pin"]
    done = tamis("release", id[:10])
    assert f"{id} is released for v2" in done.stderr
    assert find_decisions(Path(), "v2").read_text() == "[]\n"
    assert "nothing is decided of it" in tamis("release", id).stderr


def test_a_new_version_begins_with_the_decisions_of_the_one_before(project):
    id = pick("v2", chosen=True)
    assert tamis("veto", id, "--because", "so", "--by", "Ann", "--version", "v2").exit_code == 0
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["versions"]["v3"] = {"raw": "data/raw/v2", "previous": "v2"}
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert tamis("status", "v3").exit_code == 0
    assert [one.id for one in read_decisions(find_decisions(Path(), "v3"))] == [id]
    assert read_decisions(find_decisions(Path(), "v1")) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["veto", "{id}", "--because", " "], "no reason is given"),
        (["veto", "{id}", "--because", "so", "--by", " "], "nobody signs"),
        (["veto", "ffffffffffff", "--because", "so", "--by", "Ann"], "begin"),
        (["pin", "{id}", "--because", "so", "--by", "Ann", "--version", "v9"], "v9"),
        (["pin", "{late}", "--because", "so", "--by", "Ann", "--version", "v1"], "v1 has no row {late}"),
        (["release", "{id}"], "nothing is decided of it"),
        (["pin", "{measured}", "--because", "so", "--by", "Ann"], "is of the held-out rows of v2, and is never chosen"),
    ],
)
def test_what_cannot_be_decided_is_refused(project, arguments, text):
    late = next(id for id in subset("v2") if id not in subset("v1"))
    rows = read_table(folder("examples", "v2") / "examples.parquet").to_pylist()
    measured = next(row["id"] for row in rows if row["split"] == "held_out")
    named = {"id": pick("v2", chosen=True), "late": late, "measured": measured}
    done = tamis(*(word.format(**named) for word in arguments))
    assert done.exit_code == 1
    assert text.format(**named) in done.stderr
    assert all(read_decisions(find_decisions(Path(), version)) == [] for version in ("v1", "v2"))


def test_decisions_are_recorded_with_the_version(project):
    project.git("add", "--all", ":!versions")
    project.git("commit", "--quiet", "--message", "made")
    versions.refuse_uncommitted("v2")
    assert tamis("veto", pick("v2", chosen=True), "--because", "so", "--by", "Ann").exit_code == 0
    versions.refuse_uncommitted("v2")


def test_what_a_version_that_is_taken_out_leaves_is_told_of(project):
    assert "params.yaml has no version" not in tamis("status").stderr
    settings = yaml.safe_load(Path("params.yaml").read_text())
    del settings["versions"]["v2"]
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    told = (
        "params.yaml has no version v2, and versions/v2 keeps decisions.json, dvc.lock, which a version of that name "
    )
    assert f"{told}would take up; to forget that, delete the folder\n" in tamis("status").stderr
    shutil.rmtree("versions/v2")
    assert "params.yaml has no version" not in tamis("status").stderr
