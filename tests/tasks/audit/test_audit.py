"""Promises that are broken on purpose, one at a time; and questions that must not be answered."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from worlds import toy_corpus
from worlds.toy_project import POOL, World, answer, linger, make_world, withdraw

from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, provenance, read_table, write_json
from tasks.audit import audit, summary
from tasks.masks.settings import MaskSettings


@pytest.fixture
def world(tmp_path) -> World:
    """A project in which every promise is kept."""
    return make_world(tmp_path)


def test_kept_promises_are_written_down(world):
    table = world.write().check()
    assert table["passed"].to_pylist() == [True] * 30
    assert dict(zip(table["check"].to_pylist(), table["detail"].to_pylist(), strict=True))["leakage"] == "none"
    written = json.loads((world.folder("audit") / "audit.json").read_text())
    none = {"rows": 0, "used": 0}
    assert written == {
        "promises_kept": 18,
        "coverage": ["greetings"],
        "decided": [],
        "held_out_share": ["greetings: 0.000"],
        "length": ["chosen 2.5, pool 3.2 (-21%)"],
        "near_duplicates": [],
        "near_held_out": [],
        "repetitions": [],
        "represented": ["greetings (33.3% of the pool)"],
        "secrets": [],
        "source_shift": [],
        "topic_shift": [
            "greetings: 0.0% of the chosen, 33.3% of the pool",
            "letters: 50.0% of the chosen, 33.3% of the pool",
            "sums: 50.0% of the chosen, 33.3% of the pool",
        ],
        "withdrawn_learnt": [],
        "changes": {"kept": none, "edited": none, "new": {"rows": 8, "used": 8}, "withdrawn": none},
    }


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
    world.examples[POOL] = toy_corpus.reword(world.examples[POOL], prompt=f" {twin['prompt'].replace(' ', '  ')}")
    world.examples[POOL]["id"] = "other"
    world.evaluation[0]["id"] = world.evaluation[2]["id"] = "other"
    with pytest.raises(audit.AuditError, match=rf"1 of 18 promises of v1 are broken: leakage: 1, first {twin['id']}"):
        world.write().check()


def test_a_chosen_row_with_a_prompt_that_the_version_before_held_out_is_named(world):
    before = [toy_corpus.row(0, "held_out", used=False)]
    with pytest.raises(audit.AuditError, match=rf"leakage: 1, first {world.examples[0]['id']}"):
        replace(world, before=before, previous="v0").write().check()


def test_a_learnt_row_with_a_held_out_prompt_is_named(world):
    taught = toy_corpus.learn(toy_corpus.row(POOL, "pool", used=False)) | {"id": "taught"}
    with pytest.raises(
        audit.AuditError, match=r"1 of 18 promises .*: learnt: 1, first taught \(its prompt is held out"
    ):
        replace(world, examples=[*world.examples, taught]).write().check()


def test_a_target_row_with_a_held_out_prompt_is_named(world):
    asked = toy_corpus.row(POOL, "target") | {"id": "asked"}
    with pytest.raises(audit.AuditError, match=r"1 of 18 promises .*: target: 1, first asked \(its prompt is held out"):
        replace(world, examples=[*world.examples, asked]).write().check()


def test_a_target_row_that_is_chosen_is_named(world):
    asked = toy_corpus.row(9, "target")
    world.subset[0]["id"] = asked["id"]
    with pytest.raises(audit.AuditError, match=rf"target: 1, first {asked['id']} \(chosen\)"):
        replace(world, examples=[*world.examples, asked]).write().check()


@pytest.mark.parametrize("split", ["pool", "held_out"])
def test_a_validation_row_with_the_prompt_of_a_row_elsewhere_is_named(world, split):
    twin = next(one for one in world.examples if one["split"] == split)
    stray = toy_corpus.row(9, "validation") | {"id": "stray"}
    stray = toy_corpus.reword(stray, prompt=twin["prompt"], response="another")
    world.subset[0]["id"] = twin["id"] if split == "pool" else world.subset[0]["id"]
    found = "stray" if split == "held_out" else twin["id"]
    with pytest.raises(audit.AuditError, match=rf"1 of 18 promises .*: validation: 1, first {found} \("):
        replace(world, examples=[*world.examples, stray]).write().check()


def test_a_planted_row_in_use_outside_the_pool_is_named(world):
    world.examples[POOL]["planted"] = "cut"
    world.examples[0]["planted"] = "cut"
    with pytest.raises(audit.AuditError, match=rf"planted: 1, first {world.examples[POOL]['id']} \(held_out\)"):
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


ROLES = {"pool": 0, "learnt": 8, "target": 9, "held_out": POOL}  # a row's place by the part that it plays


def pair_up(world: World, target: str, demo: str) -> World:
    """Add a learnt row, a target row, and a pair of rows of two parts."""
    examples = [*world.examples, toy_corpus.learn(toy_corpus.row(8, "pool", used=False)), toy_corpus.row(9, "target")]
    target, demo = (examples[ROLES[name]]["id"] for name in (target, demo))
    pair = {"target_id": target, "demo_id": demo, "utility": 0.5, "kernel": True}
    return replace(world, examples=examples, utility=[*world.utility, pair])


@pytest.mark.parametrize(
    "pair", [("pool", "learnt"), ("pool", "target"), ("target", "pool"), ("target", "learnt"), ("target", "target")]
)
def test_pairs_with_learnt_and_target_rows_are_kept(world, pair):
    assert all(pair_up(world, *pair).write().check()["passed"].to_pylist())


@pytest.mark.parametrize(
    "pair",
    [("learnt", "pool"), ("learnt", "target"), ("pool", "held_out"), ("held_out", "pool")],
)
def test_a_pair_that_no_objective_reads_is_named(world, pair):
    with pytest.raises(audit.AuditError, match=r"1 of 18 promises of v1 are broken: pairs: 1"):
        pair_up(world, *pair).write().check()


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
    with pytest.raises(audit.AuditError, match=rf"evaluation: 1, first chosen finetuning 0 {lost['id']} of v1 0 times"):
        world.write().check()


def test_a_row_that_was_not_held_out_is_no_evaluation(world):
    world.evaluation.append(world.evaluation[0] | {"id": world.examples[0]["id"]})
    with pytest.raises(audit.AuditError, match=r"evaluation: 1, .*1 times \(not to be answered\)"):
        world.write().check()


def test_held_out_rows_of_the_version_before_are_asked_of_the_runs_that_answered_any(world):
    before = [toy_corpus.row(place, "held_out") for place in (20, 21)]
    again = [answer(row, "chosen", "finetuning", 0, "v0") for row in before]
    in_context = [answer(row, "chosen", "in_context", 0) for row in world.examples[POOL:]]
    world = replace(world, previous="v0", before=before, evaluation=[*world.evaluation, *again, *in_context])
    assert all(world.write().check()["passed"].to_pylist())
    world.evaluation.remove(again[1])
    text = rf"evaluation: 1, first chosen finetuning 0 {before[1]['id']} of v0 0 times"
    with pytest.raises(audit.AuditError, match=text):
        world.write().check()


def test_general_rows_are_asked_of_trained_runs_and_of_the_base(world):
    rows = [toy_corpus.row(place, "general") for place in (30, 31)]
    asked = (("base", "none", None), ("chosen", "finetuning", 0))
    answers = [answer(row, *run, "general") for run in asked for row in rows]
    world = replace(world, examples=[*world.examples, *rows], evaluation=[*world.evaluation, *answers])
    assert all(world.write().check()["passed"].to_pylist())
    world.evaluation.remove(answers[3])
    text = rf"evaluation: 1, first chosen finetuning 0 {rows[1]['id']} of general 0 times"
    with pytest.raises(audit.AuditError, match=text):
        world.write().check()


def test_a_chosen_row_with_a_general_prompt_is_named(world):
    chosen = next(row for row in world.examples if row["id"] == world.subset[0]["id"])
    general = toy_corpus.reword(toy_corpus.row(30, "general", used=False), prompt=chosen["prompt"])
    world.examples.append(general)
    with pytest.raises(audit.AuditError, match=rf"leakage: 1, first {chosen['id']} \(held out, or its prompt is\)"):
        world.write().check()


@pytest.mark.parametrize(("learner", "version"), [("in_context", "v0"), ("finetuning", "v7")])
def test_an_answer_that_nobody_asked_for_is_named(world, learner, version):
    (before,) = rows = [toy_corpus.row(20, "held_out")]
    known = [answer(before, "chosen", "finetuning", 0, "v0")]
    more = [answer(row, "chosen", learner, 0) for row in world.examples[POOL:]] if learner == "in_context" else []
    stray = answer(before, "chosen", learner, 0, version)
    world = replace(world, previous="v0", before=rows, evaluation=[*world.evaluation, *known, *more, stray])
    text = rf"evaluation: 1, first chosen {learner} 0 {before['id']} of {version} 1 times \(not to be answered\)"
    with pytest.raises(audit.AuditError, match=text):
        world.write().check()


def test_unused_held_out_rows_are_not_asked(world):
    before = [toy_corpus.row(20, "held_out", used=False) | {"unused_because": "not sampled"}]
    assert all(replace(world, previous="v0", before=before).write().check()["passed"].to_pylist())


def test_an_empty_evaluation_breaks_the_promise(world):
    with pytest.raises(audit.AuditError, match="evaluation: 1, first no arm at all"):
        replace(world, evaluation=[]).write().check()


def test_learnt_rows_that_are_withdrawn_or_edited_are_information(world):
    old = [toy_corpus.row(place, "pool") | {"earlier": "learnt"} for place in (20, 21)]
    old[0]["prompt"] = "one\n two " + "x" * 40
    forgotten = toy_corpus.row(22, "pool") | {"earlier": "offered"}
    gone = [withdraw(old[0]), withdraw(old[1], world.examples[0]["id"]), withdraw(forgotten)]
    long_ago = linger(toy_corpus.row(23, "pool") | {"edited_to": "e" * 32}, "v0")
    table = replace(world, withdrawn=gone, lingering=[long_ago]).write().check()
    (row,) = [row for row in table.to_pylist() if row["check"] == "withdrawn_learnt"]
    assert (row["passed"], row["rows"]) == (True, 3)
    assert set(world.found("withdrawn_learnt")) == {
        f'{old[0]["id"]} greetings "one two {"x" * 31}"',
        f'{old[1]["id"]} sums "what is 21 + 21" edited to {world.examples[0]["id"]}',
        f"{long_ago['id']} {long_ago['topic']} edited to {'e' * 32} gone since v0",
    }


def test_changes_are_counted_among_distinct_rows(world):
    world.examples[0] |= {"change": "kept", "used": True}
    world.examples[1] |= {"change": "edited"}
    kept = toy_corpus.learn(toy_corpus.row(8, "pool", used=False))
    examples = [*world.examples, kept, kept | {"row": 9, "duplicate_of": 8, "unused_because": "duplicate"}]
    gone = [withdraw(toy_corpus.row(20, "pool")), withdraw(toy_corpus.row(21, "pool"), world.examples[1]["id"])]
    replace(world, examples=examples, withdrawn=gone).write().check()
    assert world.found("changes") == {
        "kept": {"rows": 2, "used": 1},
        "edited": {"rows": 1, "used": 1},
        "new": {"rows": 6, "used": 6},
        "withdrawn": {"rows": 1, "used": 0},
    }


def test_the_same_artifacts_give_the_same_audit(world):
    world.write().check()
    first = (world.folder("audit") / "audit.parquet").read_bytes()
    world.check()
    assert (world.folder("audit") / "audit.parquet").read_bytes() == first


def test_a_summary_reads_metrics_and_notes(world):
    numbers = {"rows": 2, "loss": 1.5, "loss_low": 1.0, "loss_high": 2.0, "seeds": 1, "loss_by_seed": {"0": 1.5}}
    differences = {
        "chosen-random": {"loss": -0.1, "low": -0.2, "high": 0.1},
        "chosen-full": {"loss": 0.3, "low": 0.2, "high": 0.4},
        "chosen-base": {"loss": -0.3, "low": -0.4, "high": -0.2},
    }
    metrics = {"arms": {"chosen": numbers, "random": numbers}, "differences": differences}
    write_json(metrics, world.folder("evaluation") / "metrics.json")
    write_json({"pairs_scored": 0, "why": "rows are random"}, world.folder("utility") / "utility.json")
    write_json({"coverage": ["health"], "held_out_share": []}, world.folder("audit") / "audit.json")
    found = summary.summarise(world.root, "v1")
    assert found.arms == [(arm, 2, 1.5, 1.0, 2.0, 1) for arm in ("chosen", "random")]
    assert found.pairs_scored == 0
    assert found.notes == [
        "loss of chosen minus base: -0.3000 (-0.4000 to -0.2000): lower",
        "loss of chosen minus full: +0.3000 (+0.2000 to +0.4000): higher",
        "loss of chosen minus random: -0.1000 (-0.2000 to +0.1000): no clear difference",
        "no pairs: rows are random",
        "1 topic without a chosen row: health",
    ]


def test_a_summary_tells_what_a_score_of_rows_mostly_is(world):
    write_json({"arms": {}}, world.folder("evaluation") / "metrics.json")
    write_json({"pairs_scored": 0}, world.folder("utility") / "utility.json")
    write_json({"notes": ["dualsft: this score is mostly length"]}, world.folder("gradients") / "gradients.json")
    assert "dualsft: this score is mostly length" in summary.summarise(world.root, "v1").notes


@pytest.mark.parametrize("rejects", [0, 9])
def test_a_summary_tells_how_many_raw_rows_were_left_out(world, rejects):
    write_json({"arms": {}}, world.folder("evaluation") / "metrics.json")
    write_json({"pairs_scored": 0}, world.folder("utility") / "utility.json")
    write_json({"rejects": rejects}, world.folder("examples") / "examples.json")
    told = [note for note in summary.summarise(world.root, "v1").notes if "left out" in note]
    assert [note.partition(" raw rows were left out, each with its reason: ")[0] for note in told] == ["9"] * (
        rejects > 0
    )
    assert all("FROM rejects WHERE version = 'v1'" in note for note in told)


def test_a_summary_needs_an_evaluation(tmp_path):
    with pytest.raises(ArtifactError, match=r"metrics.json is missing; run `tamis run`"):
        summary.summarise(tmp_path, "v1")


UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
MASK = {"mask": {UP: [1, 6, 7, 8]}, "shapes": {UP: (4, 5), NORM: (1, 4)}}
ASKED = MaskSettings(selector="dualsft", budget={"fraction": 0.17})  # 4 of 24


def test_a_mask_within_its_budget_keeps_its_promise(world):
    assert all(replace(world, **MASK).write().check(mask=ASKED)["passed"].to_pylist())
    assert all(world.check(mask=replace(ASKED, budget={"count": 4}))["passed"].to_pylist())


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ({"selector": "random", "budget": {"count": 5}}, "mask: 1, first 4 of 24 parameters, asked are 5"),
        ({"selector": "random", "budget": {"fraction": 0.1}}, "mask: 1, first 4 of 24 parameters, asked are 2"),
        ({"selector": "none"}, "mask: 1, first 4 of 24 parameters, asked are 0"),
    ],
)
def test_a_mask_of_another_budget_is_named(world, mask, text):
    with pytest.raises(audit.AuditError, match=text):
        replace(world, **MASK).write().check(mask=MaskSettings(**mask))


def test_a_mask_that_was_asked_for_and_is_empty_is_named(world):
    with pytest.raises(audit.AuditError, match="mask: 1, first 0 of 0 parameters, asked are 1"):
        world.write().check(mask=ASKED)


def test_rows_of_a_mask_that_its_tensors_do_not_count_are_named(world):
    path = replace(world, **MASK).write().folder("selection") / "mask.parquet"
    made, rows = provenance(path), read_table(path, schemas.MASK).to_pylist()
    inputs = made["inputs"]
    rows[0]["columns"].append(3)
    world.write_rows([*rows, rows[0] | {"tensor": "stray", "chosen": 2, "columns": [0, 1]}], schemas.MASK, path, inputs)
    text = (
        f"mask: 2, first {UP}: 5 entries in mask.parquet, counted as 4, and 4 of 20 in tensors.parquet, stray: 2 "
        "entries in mask.parquet, counted as 2, and 0 of 0 in tensors.parquet"
    )
    with pytest.raises(audit.AuditError, match=text):
        world.check(mask=ASKED)


def test_an_audit_waits_for_no_model_library():
    asked = "import sys, tasks.audit.audit; print(sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
