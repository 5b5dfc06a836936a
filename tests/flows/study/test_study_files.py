"""The studies of the project are accepted, and a file that is like another takes over what it does not say."""

import contextlib
import shutil
import subprocess

import pytest
import yaml
from worlds.projects import ROOT
from worlds.study_cells import make_cells

from flows.checks import ParamsError
from flows.study import plan, reporting, run
from tasks.selection.selectors import CHANCE
from tasks.study import results

NAMES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
FORMS = ("clean", "redundant", "noisy", "rare", "versions", "mixture", "confirm")


@pytest.fixture
def inside(tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "studies").mkdir()
    with contextlib.chdir(tmp_path):
        write("model", MODEL)
        yield tmp_path


MODEL = {
    "builder": "studies/pools.py",
    "seeds": 5,
    "budgets": [0.1],
    "chance": ["random"],
    "params": {"selection": {"quality": "help"}, "utility": {"neighbours": 4}},
    "selectors": {"default": {}, "random": {"selection": {"selector": "random"}}},
    "pools": {"clean-a": {"steps": 7}, "noisy-b": {"seeds": 2}, "confirm-c": {"role": "confirm"}},
}


def write(name, said):
    plan.STUDIES.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(said, sort_keys=False))


@pytest.mark.parametrize("like", [{"like": "model"}, MODEL])
@pytest.mark.parametrize("key", ["pools", "params", "selectors", "budgets", "chance", "beside", "masks", "seeds"])
@pytest.mark.parametrize("value", [-3, "word", [None], [[]], {"random": 3}, {"random": [1]}, [float("inf")]])
def test_a_value_of_the_wrong_form_is_refused_by_its_name(inside, like, key, value):
    write("odd", like | {key: value})
    with pytest.raises((plan.StudyError, ParamsError), match=rf"studies/odd.yaml.* ?{key}"):
        plan.read_study("odd")


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), True, "12 rows", "0 tokens", None])
def test_a_budget_that_is_none_is_refused_with_what_is_one(inside, budget):
    text = r"budgets is \[0.1, .*; give a list of fractions above 0 and at most 1, whole numbers of rows from 1 on, or"
    for said in ({"budgets": [0.1, budget]}, {"pools": {"clean-a": {"budgets": [0.1, budget]}}}):
        write("odd", {"like": "model", **said})
        with pytest.raises(ParamsError, match=text):
            plan.read_study("odd")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "two words", ""])
def test_a_name_that_cannot_be_filed_under_is_refused(inside, name):
    pool, selector = MODEL["pools"] | {name: {}}, MODEL["selectors"] | {name: {}}
    for what, said in (("pool", {"pools": pool}), ("selector", {"selectors": selector})):
        write("odd", MODEL | said)
        with pytest.raises(plan.StudyError, match=rf"studies/odd.yaml has a {what} '.*'; results are filed under it"):
            plan.read_study("odd")
    with pytest.raises(plan.StudyError, match=r"there is no study '.*'; known: model, odd"):
        plan.read_study(f"../studies/{name}")


def test_more_seeds_than_a_study_can_list_are_refused(inside):
    write("odd", MODEL | {"seeds": 10**9})
    with pytest.raises(ParamsError, match=r"studies/odd.yaml.seeds"):
        plan.read_study("odd")


@pytest.mark.parametrize("continues", [False, True])
def test_a_pool_whose_own_rows_are_missing_is_refused_by_its_name(inside, continues):
    if continues:
        (inside / "mine/now").mkdir(parents=True)
    write("odd", MODEL | {"pools": {"clean-a": {"raw": "mine", "continues": continues}}})
    part = "before" if continues else "now"
    with pytest.raises(plan.StudyError, match=rf"pools.clean-a.raw of studies/odd.yaml is mine, .* mine/{part}, which"):
        run.run(plan.read_study("odd"), seconds={})


def test_a_pool_without_budgets_of_its_own_has_the_studys(inside):
    write("odd", {"like": "model", "pools": {"clean-a": {"budgets": None}}})
    assert {cell.budget for cell in plan.list_cells(plan.read_study("odd"))} == {"0.1"}


def test_studies_that_are_like_each_other_are_refused(inside):
    write("odd", {"like": "even"})
    write("even", {"like": "odd"})
    with pytest.raises(plan.StudyError, match=r"studies/even.yaml is like odd, which is like it; let one of them say"):
        plan.read_study("odd")


def test_a_pools_settings_are_refused_with_file_and_pool(inside):
    write("odd", {"like": "model", "pools": {"clean-a": {"params": {"selection": {"scaling": "log"}}}}})
    with pytest.raises(ParamsError, match=r"studies/odd.yaml, pool clean-a: selection.scaling must be relu or"):
        plan.read_study("odd")


@pytest.mark.parametrize("name", NAMES)
def test_the_studies_of_the_project_are_accepted_and_say_what_they_are_for(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = plan.read_study(name)
    assert (ROOT / f"studies/{name}.yaml").read_text().startswith("# ")
    assert {pool.partition("-")[0] for pool in study.pools} <= set(FORMS)
    assert all(pool.startswith("confirm") == (said.role == "confirm") for pool, said in study.pools.items())


def test_the_core_grid_has_every_pool_that_the_builder_makes_five_seeds_and_two_budgets(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = plan.read_study("core")
    assert study.plan.seeds == 5
    assert {"default", "random", "embedding"} == set(study.plan.selectors)
    assert {"capped", "dualsft_cover"} <= set(plan.read_study("more").plan.selectors)
    for pool in study.pools.values():
        assert {0.1, 0.3} <= set(pool.budgets or study.plan.budgets)
        assert pool.seeds is None
    assert {name.partition("-")[0] for name in study.pools} == set(FORMS)


def test_seeds_are_outermost_and_pools_stand_as_the_file_has_them(inside):
    cells = plan.list_cells(plan.read_study("model"))
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert list(dict.fromkeys(cell.pool for cell in cells if cell.seed == 0)) == ["clean-a", "noisy-b", "confirm-c"]
    assert {cell.seed for cell in cells if cell.pool == "noisy-b"} == {0, 1}


def test_a_study_like_another_takes_over_what_it_does_not_say(inside):
    write(
        "more",
        {
            "like": "model",
            "seeds": 3,
            "params": {"selection": {"quality_prior": 1}},
            "pools": {"clean-a": {"seeds": 4}},
        },
    )
    found = plan.read_study("more")
    assert (found.plan.seeds, found.plan.budgets, list(found.pools)) == (3, [0.1], ["clean-a"])
    assert (found.pools["clean-a"].steps, found.pools["clean-a"].seeds) == (7, 4)
    assert found.plan.params == {"selection": {"quality": "help", "quality_prior": 1}, "utility": {"neighbours": 4}}
    assert plan.read_study("model").plan.params == MODEL["params"]


@pytest.mark.parametrize("like", [None, ["model"], 5])
def test_a_study_like_what_is_no_name_is_refused(inside, like):
    write("odd", {"like": like})
    with pytest.raises(plan.StudyError, match=r"studies/odd.yaml is like .*; name one study"):
        plan.read_study("odd")


def test_a_pool_that_the_other_study_lacks_is_refused(inside):
    write("more", {"like": "model", "pools": {"clean-b": {}}})
    with pytest.raises(
        plan.StudyError,
        match=r"names a pool 'clean-b' \(did you mean 'clean-a'\?\) that study model lacks; known: clean-a,",
    ):
        plan.read_study("more")


def test_confirmation_pools_are_run_apart(inside):
    study = plan.read_study("model")
    assert set(plan.choose_pools(study, confirm=False).pools) == {"clean-a", "noisy-b"}
    assert set(plan.choose_pools(study, confirm=True).pools) == {"confirm-c"}
    assert set(plan.choose_pools(study, confirm=False, only=["noisy-b"]).pools) == {"noisy-b"}
    with pytest.raises(plan.StudyError, match=r"there is no design pool 'confirm-c'; known: clean-a, noisy-b"):
        plan.choose_pools(study, confirm=False, only=["confirm-c"])
    write("more", {"like": "model", "pools": {"clean-a": {}}})
    with pytest.raises(plan.StudyError, match=r"0 of 1 pools of studies/more.yaml are of role confirm"):
        plan.choose_pools(plan.read_study("more"), confirm=True)


def test_some_selectors_may_be_run_before_the_others_and_chance_stays_chance(inside):
    study = plan.read_study("model")
    names = list(study.plan.selectors)
    some = plan.choose_selectors(study, [names[-1]])
    assert [cell for cell in plan.list_cells(study) if cell.selector == names[-1]] == plan.list_cells(some)
    assert some.plan.chance == study.plan.chance
    assert plan.choose_selectors(study, []) == study
    with pytest.raises(plan.StudyError, match=rf"there is no selector 'nothing'; known: {', '.join(names)}"):
        plan.choose_selectors(study, ["nothing"])


def test_confirmation_waits_until_what_was_edited_is_committed(inside, monkeypatch):
    monkeypatch.setattr(run, "find_commit", lambda: "abc+")
    study = plan.choose_pools(plan.read_study("model"), confirm=True)
    with pytest.raises(plan.StudyError, match="confirmation pools are scored once, by a default that is committed"):
        run.run(study, seconds={})


def test_a_confirmation_pool_is_scored_once(inside, monkeypatch):
    monkeypatch.setattr(run, "find_commit", lambda: "abc")
    study = plan.choose_pools(plan.read_study("model"), confirm=True)
    with pytest.raises(plan.StudyError, match="confirmation pools are scored once; leave out --again"):
        run.run(study, again=True, seconds={})
    facts = {"pool": "confirm-c", "selector": "default", "budget": "0.1", "mask": "none", "rule": "a"}
    stored = [{**facts, "commit": "c" * 40}, {**facts, "selector": "random", "rule": "b", "commit": "d" * 40}]
    run.refuse_second(facts, stored)
    with pytest.raises(plan.StudyError, match="confirm-c was scored by another 'default', of commit cccccccc, and"):
        run.refuse_second({**facts, "rule": "b"}, stored)


def test_a_commit_is_marked_where_files_were_edited_but_for_results(inside):
    def git(*arguments):
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *named, *arguments], check=True, capture_output=True)

    assert run.find_commit() == "unknown"
    git("init", "-q")
    path = results.find_file(run.RESULTS / "model", "clean-a")
    path.parent.mkdir(parents=True)
    path.write_text("one")
    git("add", ".")
    git("commit", "-qm", "all")
    commit = run.find_commit()
    path.write_text("two")
    assert run.find_commit() == commit != "unknown"
    (inside / "params.yaml").write_text("edited")
    assert run.find_commit() == f"{commit}+"


def test_a_report_shows_the_cells_of_studies_beside_it(inside):
    write("more", {"like": "model", "pools": {"clean-a": {}}, "chance": ["random"]})
    write("whole", {"like": "model", "beside": ["more"]})
    for name, pool in (("whole", "noisy-across-20"), ("more", "clean-a")):
        for cell in make_cells(pool, seeds=1):
            results.add_cell(results.find_file(run.RESULTS / name, pool), cell)
    stale = run.RESULTS / "whole/study-picks.png"
    stale.write_bytes(b"an earlier report's")
    paths = reporting.write_report(plan.read_study("whole"))
    assert {path.parent for path in paths} == {run.RESULTS / "whole"}  # core's own stays as it is
    assert stale in paths or not stale.exists()
    page = paths[0].read_text()
    assert "noisy-across-20" in page
    assert "clean-a" in page


def test_chance_has_neither_a_gate_nor_a_pilot(inside):
    gate = {"by": "agreement", "drop": 0.2}
    write("gated", {"like": "model", "params": {"selection": {"gate": gate}, "examples": {"validation_every": 10}}})
    study = plan.read_study("gated")
    found = {c.selector: plan.compose(study, c, inside).selection.gate for c in plan.list_cells(study)}
    assert found["random"] is None
    assert found["default"]["by"] == "agreement"


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_drawn_by_chance_pass_no_gate_and_no_pilot(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study, found = plan.read_study(name), []
    for cell in {(c.pool, c.selector, c.budget, c.mask): c for c in plan.list_cells(study)}.values():
        found.append(plan.compose(study, cell, ROOT).selection)
        if study.pools[cell.pool].continues:
            found.append(plan.compose_before(study, cell, ROOT).selection)
    drawn = [each for each in found if each.selector in CHANCE]
    assert drawn
    assert {(each.gate, each.pilot) for each in drawn} == {(None, None)}
