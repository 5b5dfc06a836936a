"""Questions that are answered, and those that must not be."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from worlds.toy_project import POOL, World, make_world, withdraw

from tasks.artifacts.tables import ArtifactError, Provenance, write_table
from tasks.catalogue import diffs, questions, rows, sources
from tasks.catalogue.examples import EXAMPLES


@pytest.fixture
def world(tmp_path) -> World:
    """A project in which every promise is kept."""
    return make_world(tmp_path)


VIEWS = (
    "approvals",
    "changes",
    "decisions",
    "embedding",
    "evaluation",
    "examples",
    "lingering",
    "mask",
    "pairs",
    "phi_data",
    "runs",
    "scores",
    "selector_scores",
    "subset",
    "tensors",
    "turns",
    "utility",
    "withdrawn",
)


def test_scores_of_a_selector_and_of_a_gate_by_the_same_measure_have_names_of_their_own(world):
    folder = world.write().folder("scores")
    rows = pq.read_table(folder / "scores.parquet", partitioning=None)
    write_table(rows, folder / "scores.parquet", Provenance("scores", "v1", {"selector": "ifd"}))
    write_table(rows, folder / "ifd.parquet", Provenance("scores", "v1", {"gate": "ifd"}))
    sql = "SELECT DISTINCT score FROM scores WHERE score IN ('ifd', 'difficulty') ORDER BY ALL"
    assert questions.query(world.root, sql)[1] == [("difficulty",), ("ifd",)]
    assert questions.query(world.root, "SELECT id FROM scores GROUP BY version, id, score HAVING count(*) > 1")[1] == []


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
def test_an_artifact_edited_by_hand_stops_the_audit_and_costs_its_own_view(world, edit, text):
    edit(world.write().folder("utility") / "utility.parquet")
    named = rf"utility.parquet .*{text}.* restore it with `dvc checkout"
    with pytest.raises(ArtifactError, match=named):
        world.check()
    with pytest.raises(questions.QuestionError, match=rf"(?s)reads these views.*utility cannot be read: .*{named}"):
        questions.query(world.root, "FROM utility")
    assert questions.query(world.root, "SELECT count(*) FROM examples")[1] == [(8,)]
    assert re.search(named, rows.show(world.root, world.examples[0]["id"])["cannot_be_read"]["utility"])


def test_a_table_is_read_once_for_its_check_until_it_changes(world, monkeypatch):
    from tasks.artifacts import remembered

    monkeypatch.setattr(remembered, "SETTLED", -1e18)
    asked, real = [], sources.tables.check_table
    monkeypatch.setattr(sources.tables, "check_table", lambda path: asked.append(path.name) or real(path))
    world.write()
    questions.query(world.root, "SELECT count(*) FROM examples")
    first = list(asked)
    questions.query(world.root, "SELECT count(*) FROM examples")
    assert "examples.parquet" in first
    assert asked == first
    flip_a_byte(world.folder("examples") / "examples.parquet")
    with pytest.raises(questions.QuestionError, match=r"examples cannot be read: .*was changed after it was written"):
        questions.query(world.root, "SELECT count(*) FROM examples")


PIVOTS = [
    "PIVOT examples ON topic USING count(*)",
    "FROM (PIVOT examples ON topic USING count(*) GROUP BY version)",
    "WITH p AS (PIVOT examples ON topic USING count(*)) SELECT * FROM p",
    "/* a comment */ pivot examples ON topic USING count(*)",
    "EXPLAIN (FORMAT json) SELECT * FROM examples",
    "EXPLAIN ANALYZE SELECT count(*) FROM examples",
    "(SELECT 1) UNION (SELECT 2)",
    "VALUES (1)",
    "/* Zeilen für Köln */ SELECT 1",
    "/* 日本語 */ EXPLAIN SELECT 'ü'",
    "-- é\nEXPLAIN (FORMAT json) SELECT 1",
]


def test_a_question_that_is_no_text_is_refused(world):
    with pytest.raises(questions.QuestionError, match="the question is no text in UTF-8"):
        questions.query(world.root, "SELECT '\udcff'")


@pytest.mark.parametrize("sql", PIVOTS)
def test_pivots_and_explanations_of_what_reads_are_answered(world, sql):
    world.write()
    assert questions.query(world.root, sql)[1]


@pytest.mark.parametrize(
    ("sql", "limits", "text"),
    [
        ("SELECT count(*) FROM range(100000000) a, range(100000) b", {"seconds": 0.2}, r"no answer within 0\.2 s; ask"),
        (
            "SELECT string_agg(repeat('x', 1000) || range) FROM range(10000000)",
            {"gigabytes": 0.1},
            r"takes more than 0\.1 GB of memory; ask",
        ),
        (
            "SELECT repeat('x', 20000) || range FROM range(1000000)",  # each part of it is small
            {"gigabytes": 0.1},
            r"takes more than 0\.1 GB of memory; ask",
        ),
        ("FROM range(11)", {"rows": 10}, r"more than 10 rows; ask for fewer"),
    ],
)
def test_a_question_that_takes_too_much_is_refused(world, sql, limits, text):
    world.write()
    with pytest.raises(questions.QuestionError, match=text):
        questions.query(world.root, sql, limits=questions.Limits(**limits))
    assert len(questions.query(world.root, "FROM range(10)", limits=questions.Limits(rows=10))[1]) == 10


def test_versions_that_are_not_configured_any_more_are_marked(world):
    world.write()
    replace(world, examples=world.examples[:3]).write("v9")
    configured = {"v1": {"raw": "data/raw/v1", "previous": "base"}, "v2": {"raw": "data/raw/v2", "previous": "v1"}}
    names, rows = questions.query(world.root, "FROM versions", configured)
    assert names == ["version", "configured", "made", "previous", "raw"]
    assert rows == [
        ("v1", True, True, "base", "data/raw/v1"),
        ("v2", True, False, "v1", "data/raw/v2"),
        ("v9", False, True, None, None),
    ]


def test_questions_see_all_versions(world):
    world.write()
    replace(world, examples=world.examples[:3]).write("v2")
    names, rows = questions.query(
        world.root, "SELECT version, count(*) AS n FROM examples GROUP BY ALL ORDER BY version"
    )
    assert (names, rows) == (["version", "n"], [("v1", 8), ("v2", 3)])
    assert questions.query(world.root, "SHOW TABLES")[1] == [(name,) for name in VIEWS]
    assert questions.query(world.root, "DESCRIBE subset")[1][0][:2] == ("id", "VARCHAR")


REFUSED = {
    "COPY examples TO '{out}'": "COPY is not answered",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'": "COPY is not answered",
    "EXPLAIN ANALYZE CREATE TABLE mine AS SELECT 1": "CREATE is not answered",
    "/* a */ explain (analyze, format json) /* b */ DELETE FROM examples": "DELETE is not answered",
    "EXPLAIN": "syntax error",
    "CREATE TABLE mine AS PIVOT examples ON topic USING count(*)": "is not answered",
    "PIVOT examples ON topic USING count(*); SELECT 1": "a text of 2 statements is not answered",
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
    "SELECT 1; COPY examples TO '{out}'": "a text of 2 statements is not answered",
    "": "an empty text is not answered",
    "SELEKT 1": "syntax error",
    "SELECT nothing FROM examples": "reads these views and nothing else: approvals, changes, decisions, embedding, ev",
}


def contents(root: Path) -> dict[Path, bytes]:
    """Return all files but what was found of them."""
    files = [file for file in root.rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files if file != root / sources.CHECKED}


@pytest.mark.parametrize("sql", REFUSED)
def test_a_question_can_only_read_the_artifacts(world, sql):
    path = world.write().folder("examples") / "examples.parquet"
    before = contents(world.root)
    with pytest.raises(questions.QuestionError, match=REFUSED[sql]):
        questions.query(world.root, sql.format(out=world.root / "out", data=path))
    assert contents(world.root) == before


def test_without_artifacts_there_is_nothing_to_ask(tmp_path):
    with pytest.raises(ArtifactError, match=r"no artifacts in .*data yet; make them: `tamis run`"):
        questions.query(tmp_path, "SELECT 1")


def test_a_refused_question_leaves_nothing_on_stderr(world):
    world.write()
    code = (
        "import sys\nfrom pathlib import Path\nfrom tasks.catalogue import questions\n"
        "try: questions.query(Path(sys.argv[1]), 'SELECT nothing FROM examples')\n"
        "except ValueError as error: kept = error"
    )
    done = subprocess.run([sys.executable, "-c", code, str(world.root)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_show_tells_all_that_is_known(world):
    world.write()
    ids = [row["id"] for row in world.examples]
    found = rows.show(world.root, ids[5][:12])
    assert found["id"] == ids[5]
    assert found["examples"][0]["prompt"] == "what is 5 + 5"
    assert found["selection"][0] | {"covered_by": ids[0], "covering_prompt": "what is 0 + 0"} == found["selection"][0]
    assert [row["id"] for row in found["best_demos"]] == ids[:5]
    assert [row["utility"] for row in found["best_demos"]] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert [row["id"] for row in found["helps_most"]] == ids[4::-1]
    assert found["evaluation"] == []
    assert [row["arm"] for row in rows.show(world.root, ids[POOL])["evaluation"]] == ["base", "chosen"]
    json.dumps(found)


def test_show_tells_what_became_of_an_example(world):
    old, new = world.examples[0], world.examples[1]
    gone = [withdraw(old | {"earlier": "learnt"}, edited_to=new["id"])]
    replace(world, examples=[new | {"change": "edited"}], withdrawn=gone, previous="v1").write("v2")
    world.write()
    found = rows.show(world.root, old["id"])
    assert [(row["version"], row["change"], row["earlier"]) for row in found["examples"]] == [("v1", "new", None)]
    (said,) = found["withdrawn"]
    assert (said["version"], said["earlier"], said["edited_to"]) == ("v2", "learnt", new["id"])


def test_show_names_demos_that_are_learnt_and_not_used(world):
    world.examples[5] |= {"used": False, "unused_because": "kept", "change": "kept", "earlier": "learnt"}
    world.write()
    helps = rows.show(world.root, world.examples[5]["id"])
    assert [row["value"] for row in helps["scores"] if row["score"] == "selector"] == [5.0]
    assert [row["id"] for row in helps["helps_most"]] == [row["id"] for row in world.examples[4::-1]]
    partners = rows.show(world.root, world.examples[4]["id"])["best_demos"]
    assert world.examples[5]["id"] in [row["id"] for row in partners]


def test_show_lists_every_row_of_a_duplicate(world):
    twin = world.examples[0] | {"row": 99, "duplicate_of": 0, "used": False, "unused_because": "duplicate"}
    found = rows.show(replace(world, examples=[*world.examples, twin]).write().root, twin["id"])
    assert [(row["row"], row["duplicate_of"]) for row in found["examples"]] == [(0, None), (99, 0)]


def test_show_works_on_examples_alone(world):
    world.write()
    for stage in ("embedding", "utility", "scores", "gradients", "selection", "evaluation"):
        shutil.rmtree(world.root / "data" / stage)
    assert list(rows.show(world.root, world.examples[0]["id"])) == ["id", "examples", "withdrawn", "scores"]


def test_an_unknown_or_ambiguous_id_gets_suggestions(world):
    world.write()
    with pytest.raises(
        questions.QuestionError, match=r"no example's id begins with '5 \+ 5'; the nearest: .*what is 5 \+ 5"
    ):
        rows.show(world.root, "5 + 5")
    with pytest.raises(questions.QuestionError, match=r"several examples begin with '': .*give more digits"):
        rows.show(world.root, "")


UP, WTE, NORM = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"
SHAPES = {WTE: (3, 4), UP: (4, 5), NORM: (1, 4)}


@pytest.fixture
def masked(world) -> World:
    """Two versions with masks, and base, which has none."""
    replace(world, mask={WTE: [0, 3, 9], UP: [1, 6, 7, 8]}, shapes=SHAPES).write()
    replace(world, mask={WTE: [0, 1, 9], UP: [15]}, shapes=SHAPES).write("v2")
    return world


def test_density_by_layer_and_module_can_be_asked(masked):
    sql = """
        SELECT layer, module, sum(chosen) / sum(entries) AS density FROM tensors WHERE version = 'v1'
        GROUP BY layer, module ORDER BY layer, module"""
    assert questions.query(masked.root, sql)[1] == [(1, "up", 0.2), (None, "embedding", 0.25), (None, "norm", 0.0)]


def test_the_overlap_of_two_versions_masks_can_be_asked(masked):
    sql = """
        WITH shared AS (
            SELECT tensor, sum(len(list_intersect(a.columns, b.columns))) AS shared
            FROM mask a JOIN mask b USING (tensor, row) WHERE a.version = 'v1' AND b.version = 'v2' GROUP BY tensor)
        SELECT tensor, a.chosen, b.chosen, coalesce(shared, 0) AS shared,
            coalesce(shared, 0) / (a.chosen + b.chosen - coalesce(shared, 0)) AS jaccard
        FROM tensors a JOIN tensors b USING (tensor) LEFT JOIN shared USING (tensor)
        WHERE a.version = 'v1' AND b.version = 'v2' AND a.chosen + b.chosen > 0 ORDER BY tensor"""
    assert questions.query(masked.root, sql)[1] == [(WTE, 3, 3, 2, 0.5), (UP, 4, 1, 0, 0.0)]


@pytest.mark.parametrize(
    "example", [one for one in EXAMPLES if one.view in ("mask", "tensors")], ids=lambda one: one.view
)
def test_queries_of_the_catalogue_on_masks_are_answered(masked, example):
    assert questions.query(masked.root, example.sql)[1]


def test_the_overlap_of_masks_is_part_of_what_differs(masked):
    found = diffs.compare(*(diffs.read_side(version, masked.root, version) for version in ("v1", "v2")))
    assert [(one["module"], one["before"], one["after"], one["shared"], one["jaccard"]) for one in found.masks] == [
        ("up", 4, 1, 0, 0.0),
        ("embedding", 3, 3, 2, 0.5),
    ]
    assert (found.rows, found.both, found.metrics) == ((), 2, ())


def test_the_rows_of_a_tensor_with_most_chosen_entries_can_be_asked(masked):
    sql = f"""
        SELECT row, chosen, columns FROM mask WHERE version = 'v1' AND tensor = '{UP}'
        ORDER BY chosen DESC, row LIMIT 2"""
    assert questions.query(masked.root, sql)[1] == [(1, 3, [1, 2, 3]), (0, 1, [1])]


def test_phi_data_can_be_asked_beside_what_delift_chose(masked):
    sql = """
        SELECT id, score, rank, gain FROM phi_data JOIN subset USING (version, id) WHERE version = 'v1'
        ORDER BY score DESC LIMIT 3"""
    ids = [row["id"] for row in masked.examples]
    assert questions.query(masked.root, sql)[1] == [
        (ids[0], 1.0, 1, None),
        (ids[1], 0.0, 2, None),
        (ids[2], -1.0, None, None),
    ]


def test_show_tells_phi_data_where_there_is_some(masked):
    ids = [row["id"] for row in masked.examples]
    told = {"score": 0.0, "norm": 2.0, "per_norm": 0.0, "loss": 1.0, "order": "second"}
    assert rows.show(masked.root, ids[1])["gradients"] == [told | {"version": name} for name in ("v1", "v2")]
    assert rows.show(masked.root, ids[POOL - 1])["gradients"] == []


def test_of_a_version_it_shows_what_became_of_its_rows_its_choice_and_its_arms(world):
    world.write()
    assert rows.show_version(world.root, "v1") is None
    (world.folder("selection") / "selection.json").write_text('{"chosen_rows": 3}')
    assert rows.show_version(world.root, "v1") == {"version": "v1", "selection": {"chosen_rows": 3}}


def test_words_are_found_in_what_is_called_and_thought(world):
    arguments = json.dumps({"city": "see\nFlumox", "unit": "C"})
    calls = [{"function": {"name": "weather", "arguments": arguments}}]
    details = json.dumps({"reasoning_content": "A zorbly day", "tool_calls": calls})
    world.examples[3]["messages"][0]["details"] = details
    world.write()
    for words in ("flumox", "zorbly", "weather flumox zorbly"):
        _, found, count = rows.find(world.root, words)
        assert (count, found[0][1]) == (1, world.examples[3]["id"]), words
