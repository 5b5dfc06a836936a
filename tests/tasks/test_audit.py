"""Promises that are broken on purpose, one at a time; and questions that must not be answered."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy_project import POOL, World, make_world

from tasks import audit
from tasks.artifacts import ArtifactError, write_json


@pytest.fixture
def world(tmp_path) -> World:
    """A project in which every promise is kept."""
    return make_world(tmp_path)


def test_kept_promises_are_written_down(world):
    table = world.write().check()
    assert table["passed"].to_pylist() == [True] * 11
    assert dict(zip(table["check"].to_pylist(), table["detail"].to_pylist(), strict=True))["leakage"] == "none"
    written = json.loads((world.folder("audit") / "audit.json").read_text())
    assert written == {"promises_kept": 9, "coverage": ["greetings"], "held_out_share": ["greetings: 0.000"]}


def test_topics_without_a_chosen_row_are_information(world):
    table = world.write().check(held_out_share=0.2)
    found = {row["check"]: row for row in table.to_pylist()}
    assert found["coverage"] == {"check": "coverage", "passed": True, "rows": 1, "detail": "greetings"}
    assert found["held_out_share"]["detail"] == "greetings: 0.000"
    assert found["held_out_share"]["passed"]


def test_a_chosen_row_that_is_held_out_is_named(world):
    stray = world.examples[POOL]
    world.subset[0]["id"] = stray["id"]
    with pytest.raises(audit.AuditError, match=rf"leakage: 1, first {stray['id']} .*pool: 1"):
        world.write().check()
    assert not world.folder("audit").exists()


def test_a_chosen_row_with_a_held_out_prompt_is_named(world):
    twin = world.examples[0]
    world.examples[POOL] |= {"prompt": f" {twin['prompt'].replace(' ', '  ')}", "id": "other"}
    world.evaluation[0]["id"] = world.evaluation[2]["id"] = "other"
    with pytest.raises(audit.AuditError, match=rf"1 of 9 promises of v1 are broken: leakage: 1, first {twin['id']}"):
        world.write().check()


def test_a_row_chosen_twice_is_named(world):
    world.subset[1] |= {"id": world.subset[0]["id"]}
    with pytest.raises(audit.AuditError, match=rf"duplicates: 1, first {world.subset[0]['id']} \(2 times\)"):
        world.write().check()


def test_a_pair_of_other_examples_is_named(world):
    world.utility[0]["demo_id"] = world.examples[POOL]["id"]
    world.utility[7]["utility"] = float("nan")
    with pytest.raises(audit.AuditError, match=r"pairs: 2, first .* with demo"):
        world.write().check()


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({"count": 1}, "budget: 1, first 2 rows, at most 1"),
        ({"fraction": 0.3}, "budget: 1, first 2 rows, at most 1"),
        ({"response_tokens": 4}, "budget: 1, first 5 response tokens, at most 4"),
    ],
)
def test_an_overdrawn_budget_is_named(world, budget, text):
    with pytest.raises(audit.AuditError, match=text):
        world.write().check(budget=budget)


@pytest.mark.parametrize("budget", [{"count": 2}, {"fraction": 0.34}, {"response_tokens": 5}])
def test_a_spent_budget_is_kept(world, budget):
    assert all(world.write().check(budget=budget)["passed"].to_pylist())


def test_caps_and_floors_are_held(world):
    with pytest.raises(audit.AuditError, match=r"caps: 2, first letters: 1 rows, at most 0, sums: 1 rows, at most 0"):
        world.write().check(caps={"*": 0})
    with pytest.raises(audit.AuditError, match=r"floors: 1, first greetings: 0 rows, at least 1"):
        world.check(floors={"greetings": 1, "sums": 1})
    assert all(world.check(caps={"*": 0, "sums": 1, "letters": 1}, floors={"sums": 1})["passed"].to_pylist())


def test_a_held_out_row_that_an_arm_lacks_is_named(world):
    lost = world.evaluation.pop()
    with pytest.raises(audit.AuditError, match=rf"evaluation: 1, first chosen 0 {lost['id']} 0 times"):
        world.write().check()


def test_a_row_that_was_not_held_out_is_no_evaluation(world):
    world.evaluation.append(world.evaluation[0] | {"id": world.examples[0]["id"]})
    with pytest.raises(audit.AuditError, match=r"evaluation: 1, .*1 times \(not held out\)"):
        world.write().check()


def test_an_empty_evaluation_breaks_the_promise(world):
    with pytest.raises(audit.AuditError, match="evaluation: 1, first no arm at all"):
        replace(world, evaluation=[]).write().check()


def test_the_same_artifacts_give_the_same_audit(world):
    world.write().check()
    first = (world.folder("audit") / "audit.parquet").read_bytes()
    world.check()
    assert (world.folder("audit") / "audit.parquet").read_bytes() == first


VIEWS = ("embedding", "evaluation", "examples", "subset", "utility")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


def drop_a_row(path: Path) -> None:
    pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)


@pytest.mark.parametrize(
    ("edit", "text"),
    [(flip_a_byte, "was changed after it was written"), (drop_a_row, "was written or edited by other hands")],
)
def test_an_artifact_edited_by_hand_stops_the_audit_and_every_question(world, edit, text):
    edit(world.write().folder("utility") / "utility.parquet")
    for ask in (world.check, lambda: audit.query(world.root, "FROM examples"), lambda: audit.show(world.root, "a")):
        with pytest.raises(ArtifactError, match=rf"utility.parquet .*{text}.* restore it with `dvc checkout"):
            ask()


def test_questions_see_all_versions(world):
    world.write()
    replace(world, examples=world.examples[:3]).write("v2")
    names, rows = audit.query(world.root, "SELECT version, count(*) AS n FROM examples GROUP BY ALL ORDER BY version")
    assert (names, rows) == (["version", "n"], [("v1", 8), ("v2", 3)])
    assert audit.query(world.root, "SHOW TABLES")[1] == [(name,) for name in VIEWS]
    assert audit.query(world.root, "DESCRIBE subset")[1][0][:2] == ("id", "VARCHAR")


REFUSED = {
    "COPY examples TO '{out}'": "COPY is not answered",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'": "file system operations are disabled",
    "ATTACH '{out}'": "ATTACH is not answered",
    "SELECT * FROM read_csv('/etc/passwd')": "file system operations are disabled",
    "SELECT * FROM read_parquet('{data}')": "file system operations are disabled",
    "SELECT * FROM '{data}'": "file system operations are disabled",
    "SELECT content FROM read_text('/etc/passwd')": "file system operations are disabled",
    "SELECT * FROM glob('/*')": "file system operations are disabled",
    "FROM query('SELECT * FROM read_text(''/etc/passwd'')')": "file system operations are disabled",
    "SELECT * FROM world": "does not exist",
    "INSTALL httpfs": "LOAD is not answered",
    "LOAD json": "LOAD is not answered",
    "SET enable_external_access = true": "SET is not answered",
    "PRAGMA enable_profiling": "is not answered",
    "CALL pragma_version()": "is not answered",
    "CREATE TABLE mine AS SELECT 1": "CREATE is not answered",
    "DROP VIEW examples": "DROP is not answered",
    "DELETE FROM examples": "DELETE is not answered",
    "EXPORT DATABASE '{out}'": "EXPORT is not answered",
    "SELECT 1; COPY examples TO '{out}'": "SELECT, COPY is not answered",
    "": "nothing is not answered",
    "SELEKT 1": "syntax error",
    "SELECT nothing FROM examples": "reads these views and nothing else: embedding, evaluation, examples, subset, ",
}


@pytest.mark.parametrize("sql", REFUSED)
def test_a_question_can_only_read_the_artifacts(world, sql):
    path = world.write().folder("examples") / "examples.parquet"
    before = {file: file.read_bytes() for file in world.root.rglob("*") if file.is_file()}
    with pytest.raises(audit.AuditError, match=REFUSED[sql]):
        audit.query(world.root, sql.format(out=world.root / "out", data=path))
    assert {file: file.read_bytes() for file in world.root.rglob("*") if file.is_file()} == before


def test_without_artifacts_there_is_nothing_to_ask(tmp_path):
    with pytest.raises(ArtifactError, match=r"no artifacts in .*data yet; make them: `tamis run`"):
        audit.query(tmp_path, "SELECT 1")


def test_a_refused_question_leaves_nothing_on_stderr(world):
    world.write()
    code = (
        "import sys\nfrom pathlib import Path\nfrom tasks import audit\n"
        "try: audit.query(Path(sys.argv[1]), 'SELECT nothing FROM examples')\n"
        "except ValueError as error: kept = error"
    )
    done = subprocess.run([sys.executable, "-c", code, str(world.root)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_show_tells_all_that_is_known(world):
    world.write()
    ids = [row["id"] for row in world.examples]
    found = audit.show(world.root, ids[5][:12])
    assert found["id"] == ids[5]
    assert found["examples"][0]["prompt"] == "what is 5 + 5"
    assert found["selection"][0] | {"covered_by": ids[0], "covering_prompt": "what is 0 + 0"} == found["selection"][0]
    assert [row["id"] for row in found["best_demos"]] == ids[:5]
    assert [row["utility"] for row in found["best_demos"]] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert [row["id"] for row in found["helps_most"]] == ids[4::-1]
    assert found["evaluation"] == []
    assert [row["arm"] for row in audit.show(world.root, ids[POOL])["evaluation"]] == ["base", "chosen"]
    json.dumps(found)


def test_show_lists_every_row_of_a_duplicate(world):
    twin = world.examples[0] | {"row": 99, "duplicate_of": 0, "used": False, "unused_because": "duplicate"}
    found = audit.show(replace(world, examples=[*world.examples, twin]).write().root, twin["id"])
    assert [(row["row"], row["duplicate_of"]) for row in found["examples"]] == [(0, None), (99, 0)]


def test_show_works_on_examples_alone(world):
    world.write()
    for stage in ("embedding", "utility", "selection", "evaluation"):
        for path in world.folder(stage).iterdir():
            path.unlink()
    assert list(audit.show(world.root, world.examples[0]["id"])) == ["id", "examples"]


def test_an_unknown_or_ambiguous_id_gets_suggestions(world):
    world.write()
    with pytest.raises(audit.AuditError, match=r"no example's id begins with '5 \+ 5'; the nearest: .*what is 5 \+ 5"):
        audit.show(world.root, "5 + 5")
    with pytest.raises(audit.AuditError, match=r"several examples begin with '': .*give more digits"):
        audit.show(world.root, "")


def test_a_summary_reads_metrics_and_notes(world):
    numbers = {"rows": 2, "loss": 1.5, "loss_low": 1.0, "loss_high": 2.0, "seeds": 1, "loss_by_seed": {"0": 1.5}}
    differences = {
        "chosen-random": {"loss": -0.1, "low": -0.2, "high": 0.1},
        "chosen-full": {"loss": 0.3, "low": 0.2, "high": 0.4},
        "chosen-base": {"loss": -0.3, "low": -0.4, "high": -0.2},
    }
    metrics = {"arms": {"chosen": numbers}, "differences": differences}
    write_json(metrics, world.folder("evaluation") / "metrics.json")
    write_json({"pairs_scored": 0, "why": "rows are random"}, world.folder("utility") / "utility.json")
    write_json({"coverage": ["health"], "held_out_share": []}, world.folder("audit") / "audit.json")
    summary = audit.summarise(world.root, "v1")
    assert summary.arms == [("chosen", 2, 1.5, 1.0, 2.0, 1)]
    assert summary.pairs_scored == 0
    assert summary.notes == [
        "loss of chosen minus base: -0.3000 (-0.4000 to -0.2000): lower",
        "loss of chosen minus full: +0.3000 (+0.2000 to +0.4000): higher",
        "loss of chosen minus random: -0.1000 (-0.2000 to +0.1000): no clear difference",
        "no pairs: rows are random",
        "1 topics without a chosen row: health",
    ]


def test_a_summary_needs_an_evaluation(tmp_path):
    with pytest.raises(ArtifactError, match=r"metrics.json is missing; run `tamis run`"):
        audit.summarise(tmp_path, "v1")
