"""params.yaml is read once, completely, and refused by name where it cannot be used."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from flows import checks, params, sections

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(tmp_path):
    """Return a function that sets values in params.yaml and returns the text by which they are refused."""

    def check(**changes) -> str:
        with pytest.raises(params.ParamsError) as caught:
            params.read(write(tmp_path, changes))
        return str(caught.value)

    return check


def write(folder: Path, changes: dict) -> Path:
    """Write the project's params.yaml with some values changed (`section__key`; None stands for removal)."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


REMOVED = object()


def test_project_is_read_with_its_profile_merged_in():
    read = params.read(ROOT / "params.yaml")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert read.examples.pool_rows == raw["profiles"][raw["profile"]]["examples"]["pool_rows"]
    assert read.versions["v1"].raw == "data/raw/v1"


def test_another_profile_gives_other_values(tmp_path):
    assert params.read(write(tmp_path, {"profile": "full"})).utility.neighbours == 32


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"profile": "dmo"}, r"unknown profile 'dmo' (did you mean 'demo'?); known: demo, full"),
        ({"utility__template": "chatt"}, "utility.template must be chat or delift, got 'chatt' (did you mean 'chat'?)"),
        ({"utility__distance": "kl"}, "utility.distance must be probability or log_likelihood, got 'kl'"),
        ({"utility__kernel": "dense"}, "utility.kernel must be exact or neighbours or landmarks, got 'dense'"),
        (
            {"selection__rows_by": "delft"},
            "selection.rows_by must be delift or random or longest or embedding or perplexity or ifd or selectit or "
            "deft_ucs or less or dualsft, got 'delft' (did you mean 'delift'?)",
        ),
        (
            {"selection__optimiser": "greedy"},
            "selection.optimiser must be lazy or stochastic or partition, got 'greedy'",
        ),
        ({"selection__epsilon": 1}, "selection.epsilon is 1; it is between 0 and 1"),
        ({"selection__nu": -0.5}, "selection.nu is -0.5; it must be at least 0"),
        (
            {"selection__objective": "mutual_information"},
            "selection.objective is mutual_information but examples.target is null; name the target task's rows",
        ),
        (
            {"utility__kernel": "landmarks", "utility__landmarks": 3, "selection__budget": {"count": 4}},
            "selection.budget is count: 4, but kernel landmarks scores 3 demos",
        ),
        ({"examples__target": {"topc": "git"}}, "examples.target has an unknown 'topc' (did you mean 'topic'?)"),
        (
            {"examples__target": {"rows": 3}},
            "examples.target is {'rows': 3}; give the target task's rows by topic: NAME",
        ),
        ({"examples__target": {"topic": "git", "path": "git"}}, "give the target task's rows by topic: NAME"),
        ({"examples__target": {"topic": "git", "rows": 0}}, "examples.target.rows is 0; with topic it is at least 1"),
        ({"examples__target": {"path": "git", "rows": 9}}, "with path all are taken"),
        ({"finetuning__method": "qlora"}, "finetuning.method must be lora or full or masked, got 'qlora' (did you"),
        ({"profiles__demo__utility__neighbours": 0}, "utility.neighbours is 0; it must be at least 1"),
        (
            {"selection__mask_by": "dualsft"},
            "finetuning.method is lora and selection.mask_by is dualsft; method masked trains what mask_by chooses",
        ),
        ({"finetuning__method": "masked"}, "finetuning.method is masked and selection.mask_by is none; method masked"),
        ({"finetuning__rescore_every": 5}, "rescore_every is 5 and selection.mask_by is none; only a mask by dualsft"),
        (
            {"selection__mask_budget": {"fraction": 0}},
            "mask_budget is fraction: 0, which trains no parameter",
        ),
        ({"selection__mask_budget": {"fraction": 2}}, "fraction: 2, over 100% of the parameters; 0.1 is 10%"),
        ({"selection__mask_budget": {"count": 0.5}}, "selection.mask_budget is count: 0.5; it must be a whole number"),
        ({"selection__mask_budget": {}}, "selection.mask_budget has 0 kinds ({}); give count or fraction"),
        ({"selection__mask_budget": {"rows": 3}}, "selection.mask_budget has an unknown 'rows'"),
        (
            {"selection__mask_layer_share": 0.7, "selection__mask_module_share": 0.4},
            "selection.mask_layer_share is 0.7 and mask_module_share 0.4; each is at least 0, and together",
        ),
        ({"selection__mask_layer_share": -0.1}, "selection.mask_layer_share is -0.1 and mask_module_share 0.2"),
        (
            {"selection__rows_by": "dualsft", "gradients__validation_share": 0},
            "gradients.validation_share is 0 and examples.target is null, so there is no validation row to steer by",
        ),
        (
            {"selection__rows_by": "dualsft", "selection__budget": {"fraction": 0.95}},
            "selection.budget is fraction: 0.95 and gradients.validation_share 0.1: dualsft scores the pool without",
        ),
        ({"gradients__tau": 0}, "gradients.tau is 0; it must be above 0"),
        ({"gradients__anchor_share": 1}, "gradients.anchor_share is 1; it is a fraction, at least 0 and below 1"),
        ({"gradients__fisher_rows": 0}, "gradients.fisher_rows is 0; it must be at least 1"),
        (
            {"selection__rows_by": "dualsft", "models__dtype": "float16"},
            "models.dtype is float16, in which gradients and second moments underflow to 0; set bfloat16 or float32",
        ),
        ({"utility__pack_tokens": "many"}, "utility.pack_tokens must be a whole number, got 'many'"),
        (
            {"utility__neighbors": 4},
            "utility has an unknown 'neighbors' (did you mean 'neighbours'?); known: template,",
        ),
        ({"utility__shard_pairs": REMOVED}, "utility lacks shard_pairs; add it"),
        ({"audit": REMOVED}, "params.yaml lacks audit; add it"),
        ({"utlity": {}}, "params.yaml has an unknown 'utlity' (did you mean 'utility'?)"),
        ({"selection__budget": {"count": 3, "fraction": 0.5}}, "selection.budget has 2 kinds"),
        ({"selection__budget": {}}, "selection.budget has 0 kinds ({}); give one of count, fraction, response_tokens"),
        ({"selection__budget": {"fraction": 0}}, "selection.budget is fraction: 0, which chooses nothing"),
        ({"selection__budget": {"count": 0}}, "selection.budget is count: 0, which chooses nothing"),
        ({"selection__budget": {"fraction": 1.2}}, "fraction: 1.2, over 100% of the pool; 0.3 stands for 30%"),
        ({"selection__budget": {"count": 1.5}}, "selection.budget is count: 1.5; it must be a whole number"),
        ({"selection__budget": {"percent": 30}}, "selection.budget has an unknown 'percent'"),
        ({"selection__caps": {"food": -1}}, "selection.caps.food is -1; rows are counted from 0"),
        ({"versions__v1": {}}, "versions.v1 lacks raw, previous; add them"),
        ({"versions": {}}, "versions is empty; add one, such as v1: {raw: data/raw/v1, previous: base}"),
        (
            {"versions__v2__previous": "v0"},
            "versions.v2 continues from 'v0', which is not there; give one of v1, base",
        ),
        (
            {"versions__v1__previous": "v1"},
            "versions.v1 continues from itself: v1 -> v1; the first version's previous is base",
        ),
        ({"versions__v1__previous": "v2"}, "versions.v2 continues from v1: v1 -> v2 -> v1; the first version's"),
        ({"versions__general": {"raw": "a", "previous": "v1"}}, "versions names 'general', which stands for rows of"),
        ({"evaluation__task_metric": "pass_at_1"}, "task_metric is pass_at_1 but examples.fields names no tests; name"),
        ({"versions__base": {"raw": "a", "previous": "v1"}}, "versions names 'base', which stands for what was before"),
        ({"versions__v2": {"raw": "a"}}, "versions.v2 lacks previous; add it"),
        ({"finetuning__arms": {"chosen": 0}}, "finetuning.arms must be `name: a list of whole numbers` pairs"),
        ({"finetuning__arms": {"chosen": []}}, "finetuning.arms.chosen is []; give a list of different seeds"),
        ({"finetuning__arms": {"random": [1, 1]}}, "finetuning.arms.random is [1, 1]; give a list of different seeds"),
        ({"finetuning__arms": {"best": [0]}}, "finetuning.arms has an unknown 'best'"),
        (
            {"finetuning__arms": {"chosen": [0], "full": [0]}},
            "finetuning.arms lacks random: results stand beside random rows and the full pool; give each its seeds, "
            "such as random: [0]",
        ),
        ({"finetuning__arms": {"chosen": [0]}}, "finetuning.arms lacks random, full: results"),
        ({"finetuning__arms": {}}, "finetuning.arms lacks chosen, random, full: results"),
        ({"finetuning__learning_rate": "2e-4"}, "got '2e-4' (YAML reads 2e-4 as text; write 2.0e-4)"),
        ({"finetuning__learning_rate": 0}, "finetuning.learning_rate is 0; it must be above 0"),
        ({"finetuning__whole_model": 1}, "finetuning.whole_model must be true or false, got 1"),
        ({"examples__seed": True}, "examples.seed must be a whole number, got True"),
        ({"evaluation__confidence": 95}, "evaluation.confidence is 95; it is a fraction, at least 0 and below 1"),
        ({"profiles__demo__selection": {}}, "profiles.demo has an unknown 'selection'"),
        ({"profiles__demo__utility": REMOVED}, "profiles.demo lacks utility; add it (an empty one is written {})"),
        ({"profiles__demo__utility": {}}, "utility lacks neighbours, check_targets; add them"),
        ({"profiles__demo__utility__template": "chat"}, "profiles.demo.utility.template is read by examples, fine"),
        ({"profiles__demo__utility__kernel": "exact"}, "profiles.demo.utility.kernel is read by embedding as well"),
        ({"models": "llama"}, "models must hold `name: value` lines, got 'llama'"),
    ],
)
def test_value_that_cannot_be_used_is_refused_by_name(refused, changes, text):
    assert text in refused(**changes)


def test_what_every_profile_gives_stands_nowhere_else():
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section in params.TRACKED:
        given = set.intersection(*(set(profile[section]) for profile in raw["profiles"].values()))
        assert given
        assert given & set(raw[section]) == set()


def test_value_that_no_profile_gives_is_read_from_its_section(tmp_path):
    changes = {"profiles__demo__utility": {}, "utility__neighbours": 5, "utility__check_targets": 0}
    assert params.read(write(tmp_path, changes)).utility.neighbours == 5


def test_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(params.ParamsError, match=r"there is no .*params\.yaml here; run in the folder of the project"):
        params.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(params.ParamsError, match=r"params\.yaml is not valid YAML: .*line 1"):
        params.read(tmp_path / "params.yaml")


def test_needs_are_the_files_and_values_that_dvc_lists(monkeypatch):
    monkeypatch.chdir(ROOT)
    files, values = params.needs("utility@v1")
    assert files[:2] == ["data/examples/version=v1/examples.parquet", "data/embedding/version=v1/embedding.parquet"]
    assert values["selection.rows_by"] == "delift"
    assert values["profiles.demo.utility"] == {"neighbours": 8, "check_targets": 2}


def test_needs_equal_what_dvc_resolves(monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    with Repo(".") as repo:
        for stage in repo.index.stages:
            files, values = params.needs(stage.addressing)
            assert files == [dep.def_path for dep in stage.deps if dep not in stage.params]
            assert set(values) == {key for dep in stage.params for key in dep.params}


@pytest.mark.parametrize("address", ["utilty@v1", "utility@v9", "utility"])
def test_unknown_stage_is_refused_with_those_that_exist(address, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(params.ParamsError, match=rf"there is no stage {address}.*known: examples@v1, embedding@v1"):
        params.needs(address)


@pytest.mark.parametrize(
    "name", ["examples", "utility", "scores", "gradients", "selection", "finetuning", "evaluation"]
)
def test_every_section_has_the_fields_of_its_rooms_settings(name):
    from importlib import import_module

    settings = getattr(import_module(f"tasks.{name}"), f"{name.title()}Settings")
    ours = {field.name for field in fields(getattr(sections, name.title()))}
    theirs = {field.name for field in fields(settings)}
    assert theirs - ours <= {"template"}
    assert ours - theirs == set()


def test_selectors_are_the_same_words_wherever_they_are_told_apart():
    from typing import get_args, get_type_hints

    from flows import stage_calls
    from tasks.masks import mask_tables
    from tasks.scores import scores
    from tasks.selection import selection

    known = set(get_args(get_type_hints(sections.Selection)["rows_by"]))
    assert known == set(selection.SELECTORS) == {*scores.METHODS, *scores.UNSCORED}
    assert set(selection.SIMILAR) == set(checks.BY_OBJECTIVE)
    assert set(selection.SCORED) == set(scores.METHODS)
    assert {*stage_calls.BY_VECTORS, *stage_calls.BY_PAIRS} <= known
    masks = set(get_args(get_type_hints(sections.Selection)["mask_by"]))
    assert masks == set(mask_tables.MASKS)
