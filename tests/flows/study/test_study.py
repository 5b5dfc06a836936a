"""A study runs every cell once, over as many sittings as it takes, and keeps what came of it in one table per pool."""

import contextlib
import json
import math
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from worlds.projects import ROOT, Project, copy_real, start_project

from flows import trials
from flows.checks import ParamsError
from flows.cli import app
from flows.study import costs, plan, run
from tasks.study import results

CHANCE = {"random": {"selection": {"selector": "random"}}}
PLAN = {
    "builder": "studies/build.py",
    "data": "nowhere",
    "seeds": 2,
    "steps": 4,
    "budgets": [0.25, 8],
    "chance": ["random"],
    "params": {
        "examples": {"held_out": {"path": "held_out.jsonl"}, "pool_rows": None, "held_out_rows": None},
        "evaluation": {"task_metric": "none"},
        "finetuning": {"batch_rows": 2},
    },
    "selectors": {
        "default": {},
        "random": {"selection": {"selector": "random"}},
        "everything": {"selection": {"selector": "random", "budget": {"fraction": 1.0}}},
    },
    "pools": {
        "clean-toys": {"params": {"selection": {"quality": "help"}}},
        "noisy-toys": {"seeds": 1, "budgets": [4], "params": {"examples": {"keep": ["group"]}}},
        "versions-toys": {"continues": True, "seeds": 1, "budgets": [4]},
    },
}
BUILDER = """
import json, pathlib, sys
names = sys.argv[7:]
out, seed = pathlib.Path(sys.argv[4]), int(sys.argv[6])
if "broken" in names:
    raise SystemExit("no such data")
def row(place, name):
    made = {"prompt": f"{name} {place}?", "response": "yes" * (1 + place % 3), "topic": "ab"[place % 2]}
    if name == "noisy-toys":
        made["group"] = str(place // 2)
        made |= {"planted": "exchanged"} if place % 4 == 0 and place < 9000 else {}
    return json.dumps(made) + "\\n"
for name in names:
    for part, shift in (("before", 0), ("now", 5)):
        if part == "now" or name.startswith("versions"):
            home = out / name / f"seed={seed}" / part
            home.mkdir(parents=True)
            (home / "pool.jsonl").write_text("".join(row(1000 * seed + shift + place, name) for place in range(20)))
            (home / "held_out.jsonl").write_text("".join(row(9000 + place, name) for place in range(4)))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, toy_folder, server) -> Project:
    root = tmp_path_factory.mktemp("study") / "project"
    copy_real(root, str(toy_folder))
    (root / "studies").mkdir()
    (root / "studies/build.py").write_text(BUILDER)
    return start_project(root)


@pytest.fixture
def inside(project):
    with contextlib.chdir(project.root):
        write("toys")
        yield project


def write(name, **changes):
    said = json.loads(json.dumps({**PLAN, **changes}))
    plan.STUDIES.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(said, sort_keys=False))


def run_all(name="toys", **asked):
    return run.run(plan.read_study(name), seconds={}, **asked)


def read_rows(name="toys"):
    return results.read_all(run.RESULTS / name)


@pytest.fixture
def rows(inside):
    run_all()
    return read_rows()


def find(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_every_cell_stands_once_in_the_table_of_its_pool(rows, inside):
    cells = [tuple(row[name] for name in results.IDENTITY) for row in rows]
    assert len(set(cells)) == len(cells) == 2 * 5 + 3 + 3
    assert {path.stem for path in (run.RESULTS / "toys").iterdir()} == set(PLAN["pools"])
    assert {row["role"] for row in rows} == {"design"}
    for row in rows:
        assert len(row["ids"]) == len(row["losses"]) == len(row["base_losses"]) == 4
        assert all(map(math.isfinite, row["losses"]))
        assert len(row["chosen"]) == row["chosen_rows"]
        assert 0 <= row["coverage"] <= 1 if row["selector"] != "everything" else row["coverage"] is None


def test_seeds_draw_other_rows_and_share_those_that_are_held_out(rows):
    one, other = (find(rows, pool="clean-toys", selector="random", budget="8", seed=seed)[0] for seed in (0, 1))
    assert one["ids"] == other["ids"]
    assert one["pool_digest"] != other["pool_digest"]
    assert not set(one["chosen"]) & set(other["chosen"])


def test_trainings_of_a_budget_take_equal_steps_to_whole_epochs(rows):
    steps = {(row["selector"], row["budget"]): row["steps"] for row in find(rows, pool="clean-toys")}
    assert steps == {
        ("default", "0.25"): 3,
        ("random", "0.25"): 3,
        ("default", "8"): 4,
        ("random", "8"): 4,
        ("everything", ""): 10,
    }


def test_wrong_rows_and_repeats_among_the_picks_are_counted(rows):
    for row in find(rows, pool="noisy-toys", selector="everything"):
        assert (row["pool_rows"], row["corrupted"], row["repeats"], row["of_target"]) == (20, 5, 9, None)
        assert (row["pool_corrupted"], row["pool_repeats"], row["pool_target"]) == (5, 9, None)
    assert all(row["corrupted"] == row["repeats"] == 0 for row in find(rows, pool="clean-toys"))


def test_a_version_is_chosen_from_by_all_selectors_on_top_of_the_same_rows_and_model(rows, inside):
    own = find(rows, pool="versions-toys")
    assert {row["pool_rows"] for row in own} == {5}
    trained = [json.loads(path.read_text()) for path in inside.root.glob(".cache/trials/finetuning/*/finetuning.json")]
    assert {one["continues_from"] for one in trained if one["version"] == "now"} == {None, "chosen-0"}


def test_a_second_sitting_runs_nothing_and_one_elsewhere_goes_on_from_the_tables(rows, inside, monkeypatch):
    monkeypatch.setattr(trials, "STAGES", {})
    assert run_all() == run.Progress(16, 16, 0)
    (run.RESULTS / "toys/clean-toys.parquet").unlink()
    assert run_all() == run.Progress(16, 16, 10)  # from the trials that are kept on this machine
    assert read_rows() == rows


def test_another_study_takes_over_the_cells_that_it_shares(rows, inside, monkeypatch):
    write("more", pools={"clean-toys": PLAN["pools"]["clean-toys"]})
    monkeypatch.setattr(run, "run_cell", None)
    assert run_all("more").made == 0
    assert [row["losses"] for row in read_rows("more")] == [row["losses"] for row in find(rows, pool="clean-toys")]


def test_when_the_time_is_up_no_further_training_is_begun(inside, capsys):
    write("short", params={**PLAN["params"], "finetuning": {"batch_rows": 4}})
    assert run_all("short", minutes=0) == run.Progress(16, 0, 0)
    assert capsys.readouterr().err.endswith("the time is up: 0 of 16 cells are done; run again to go on\n")
    assert read_rows("short") == []


def test_an_interrupted_study_keeps_what_it_has_and_goes_on_there(inside, monkeypatch):
    one = {"clean-toys": PLAN["pools"]["clean-toys"]}
    write("halted", params={**PLAN["params"], "finetuning": {"batch_rows": 5}}, seeds=1, pools=one)
    own, begun = run.run_cell, []

    def work(*arguments):
        begun.append(arguments[1])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(run, "run_cell", work)
    with pytest.raises(KeyboardInterrupt):
        run_all("halted")
    assert len(read_rows("halted")) == 2
    monkeypatch.setattr(run, "run_cell", own)
    assert run_all("halted").made == 5 - 2


def test_cells_of_other_code_stay_with_a_line_or_are_made_anew(rows, inside, monkeypatch, capsys):
    path = inside.root / "tasks/selection/selection.py"
    before = path.read_text()
    try:
        path.write_text(before + "# edited\n")
        assert run_all().made == 0
        assert "clean-toys seed 0: 5 of 5 cells are of other code, first of" in capsys.readouterr().err
        monkeypatch.setattr(run, "run_cell", lambda *_: {**rows[0], "pool": "x"})
        monkeypatch.setattr(results, "add_cell", lambda *_: None)
        assert run_all(again=True).made == 16
    finally:
        path.write_text(before)


def test_a_default_that_is_written_out_is_no_other_cell(inside):
    study = plan.read_study("toys")
    cell = plan.list_cells(study)[0]
    folder = run.find_rows(study, cell.pool, 0)
    own = plan.list_settings(plan.compose(study, cell, folder))
    write("same", params={**PLAN["params"], "selection": {"scaling": "relu"}, "runtime": {"pack_tokens": 64}})
    again = plan.read_study("same")
    assert plan.list_settings(plan.compose(again, cell, folder)) == own
    write("other", params={**PLAN["params"], "selection": {"scaling": "minmax"}})
    assert plan.list_settings(plan.compose(plan.read_study("other"), cell, folder)) != own


def test_what_no_figure_depends_on_makes_no_other_cell(inside):
    study = plan.read_study("toys")
    cell = plan.list_cells(study)[0]
    own = plan.list_settings(plan.compose(study, cell, Path(".")))
    assert not {"acceptance", "landing", "mirror"} & own.keys()
    said = {"acceptance": {"approval": True}, "landing": {"url": "in"}, "mirror": {"url": "elsewhere"}}
    write("told", params=PLAN["params"] | said)
    assert plan.list_settings(plan.compose(plan.read_study("told"), cell, Path("."))) == own


@pytest.mark.parametrize("name", ["core", "more", "masks", "tokens", "candidates"])
def test_what_this_project_has_measured_is_what_its_files_ask_for(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    study = plan.read_study(name)
    asked = {
        tuple(vars(cell).values()): run.digest_settings(study, cell, plan.compose(study, cell, Path(".")))
        for cell in plan.list_cells(study)
    }
    known = [(tuple(row[part] for part in results.IDENTITY), row) for row in results.read_all(run.RESULTS / name)]
    assert known
    for identity, row in known:
        assert {"asked": row["asked"], "rule": row["rule"]} == asked[identity], identity


@pytest.mark.parametrize(("selector", "same"), [("random", True), ("embedding", True), ("delift", False)])
def test_how_pairs_are_scored_makes_no_other_cell_where_none_is_read(inside, selector, same):
    def compose(neighbours):
        chosen = {"selector": selector, "quality": "none", "quality_prior": neighbours}
        said = {"selection": chosen, "utility": {"neighbours": neighbours}}
        write(
            "pairs",
            params=PLAN["params"],
            selectors={"one": said, "random": PLAN["selectors"]["random"]},
            chance=["random"],
            pools={"clean-toys": {}},
        )
        study = plan.read_study("pairs")
        return plan.list_settings(plan.compose(study, plan.list_cells(study)[0], Path(".")))

    assert (compose(2) == compose(3)) == same
    assert "quality_prior" not in compose(2)["selection"]


def test_the_estimate_counts_trainings_of_all_seeds_and_runs_none(inside, monkeypatch):
    monkeypatch.setattr(run, "run_cell", None)
    done = CliRunner().invoke(app, ["study", "toys", "--estimate", "--json"], catch_exceptions=False)
    found = {row["pool"]: row for row in json.loads(done.stdout)}
    assert {name: found[name]["trainings"] for name in found} == {
        "clean-toys": 10,
        "noisy-toys": 3,
        "versions-toys": 4,  # with that of the version before
        "total": 17,
    }
    assert found["clean-toys"]["tokens"] > 0
    assert found["total"]["scored"] == sum(found[name]["scored"] for name in PLAN["pools"])


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"chance": ["luck"]}, plan.StudyError, "has chance: luck, which is none of its selectors"),
        ({"chance": []}, plan.StudyError, "names no chance, which every selector is held against"),
        ({"pools": {}}, plan.StudyError, "names no pools; give at least one"),
        ({"builder": None}, plan.StudyError, r"3 of 3 pools of studies/odd.yaml have no raw folder and there is no"),
        ({"seeds": 0}, ParamsError, "seeds is 0; it must be at least 1"),
        ({"budgets": [1.5]}, ParamsError, "budgets"),
        ({"masks": []}, plan.StudyError, "names no masks"),
        ({"budgets": [0.1, 8, 0.1]}, ParamsError, "names 0.1 twice"),
        ({"chance": ["default"]}, plan.StudyError, "chance: default, which chooses by the selector of params"),
        (
            {"params": PLAN["params"] | {"selection": {"seed": 1}}},
            plan.StudyError,
            "params sets selection.seed, which the",
        ),
        (
            {"pools": {"clean-toys": {"params": {"selection": {"caps": {"a": 1}}}}}},
            plan.StudyError,
            "pools.clean-toys.params sets selection.caps",
        ),
        ({"selectors": {"random": {"selction": {}}}}, ParamsError, r"unknown section 'selction' \(did you mean"),
        ({"selectors": {"random": {"selection": {"selector": "luck"}}}}, ParamsError, "selection.selector"),
        ({"pools": {"a": {"rol": "design"}}}, ParamsError, r"has an unknown 'rol' \(did you mean 'role'\?\)"),
        ({"masks": ["fischer"]}, ParamsError, "mask.selector"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_runs(inside, changes, error, text):
    write("odd", **changes)
    with pytest.raises(error, match=text):
        plan.read_study("odd")


def test_an_unknown_study_is_refused_with_those_there_are(inside):
    with pytest.raises(plan.StudyError, match=r"there is no study 'tois' \(did you mean 'toys'\?\); known: .*toys"):
        plan.read_study("tois")


def test_a_builder_that_was_edited_builds_anew_and_one_that_is_missing_is_refused(inside):
    study = plan.read_study("toys")
    path, folder = inside.root / "studies/build.py", run.find_rows(study, "clean-toys", 0)
    assert run.find_rows(study, "clean-toys", 0) == folder
    try:
        path.write_text(BUILDER + "# edited\n")
        assert run.find_rows(study, "clean-toys", 0) != folder
    finally:
        path.write_text(BUILDER)
    write("lost", builder="studies/none.py")
    with pytest.raises(plan.StudyError, match=r"there is no studies/none.py, which is to build clean-toys; name"):
        run.find_rows(plan.read_study("lost"), "clean-toys", 0)


def test_a_pool_that_cannot_be_built_is_named_with_what_its_builder_said(inside):
    write("broken", pools={"broken": {}})
    text = r"studies/build.py could not build broken with seed 0: no such data; data: nowhere of the study is no folder"
    with pytest.raises(plan.StudyError, match=text):
        run_all("broken")
    assert costs.expect_blocks(plan.read_study("broken")) == {}
