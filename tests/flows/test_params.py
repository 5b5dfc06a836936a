"""params.yaml is read once, completely, and refused by name where it cannot be used."""

import re
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from flows import params
from flows.graph.stages import read_stages
from tasks.settings import RuntimeSettings, VersionSettings

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
    """Write the project's params.yaml with some values changed (`section__key`; REMOVED stands for removal)."""
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


def test_project_is_read():
    read = params.read(ROOT / "params.yaml")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert read.examples.pool_rows == raw["examples"]["pool_rows"]
    assert read.models.template == raw["models"]["template"]
    assert read.versions["v1"].raw == "data/raw/v1"


def test_what_is_left_out_has_its_default(tmp_path):
    read = params.read(write(tmp_path, {"utility": {}, "runtime": REMOVED, "finetuning__arms": {"chosen": [3]}}))
    assert read.utility == params.UtilitySettings()
    assert read.runtime == RuntimeSettings()
    assert read.finetuning.arms == {"chosen": [3]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"models__template": "chatt"}, "models.template must be chat or delift, got 'chatt' (did you mean 'chat'?)"),
        ({"utility__distance": "kl"}, "utility.distance must be probability or log_likelihood, got 'kl'"),
        ({"utility__kernel": "dense"}, "utility.kernel must be exact or neighbours or landmarks or none, got 'dense'"),
        (
            {"selection__selector": "delft"},
            "selection.selector must be delift or random or balanced or fresh or longest or embedding or perplexity or "
            "ifd or selectit or deft_ucs or less or ica or tov or rds or bm25 or probes or dualsft or dualsft_cover, ",
        ),
        (
            {"selection__optimiser": "greedy"},
            "selection.optimiser must be lazy or stochastic or partition, got 'greedy'",
        ),
        ({"selection__epsilon": 1}, "selection.epsilon is 1; it must be below 1"),
        ({"selection__epsilon": 0}, "selection.epsilon is 0; it must be above 0"),
        ({"selection__learnt_weight": -0.5}, "selection.learnt_weight is -0.5; it must be at least 0"),
        ({"selection__target_weight": -0.5}, "selection.target_weight is -0.5; it must be at least 0"),
        ({"selection__mutual_information": "full"}, "selection.mutual_information must be saturated or additive or qu"),
        (
            {"selection__objective": "mutual_information"},
            "selection.objective is mutual_information but examples.target is null; name the target task's rows",
        ),
        (
            {
                "utility__kernel": "landmarks",
                "utility__landmarks": 3,
                "selection__budget": {"count": 4},
                "selection__selector": "delift",
            },
            "selection.budget is count: 4, but kernel landmarks scores 3 demos",
        ),
        ({"examples__fields": {"promt": "q"}}, "examples.fields maps an unknown part 'promt' (did you mean 'prompt'?)"),
        (
            {"examples__sources": {"v2": [{"path": "a.csv", "format": "alpacca"}]}},
            "examples.sources of v2, number 1 (a.csv): is 'alpacca' (did you mean 'alpaca'?)",
        ),
        (
            {"examples__sources": {"v2": [{"path": "a.csv", "fields": {"promt": "q"}}]}},
            "examples.sources of v2, number 1 (a.csv): maps an unknown part 'promt' (did you mean 'prompt'?)",
        ),
        ({"examples__target": {"topc": "git"}}, "examples.target has an unknown 'topc' (did you mean 'topic'?)"),
        (
            {"examples__target": {"rows": 3}},
            "examples.target is {'rows': 3}; give the target task's rows by topic: NAME",
        ),
        ({"examples__target": {"topic": "git", "path": "git"}}, "give the target task's rows by topic: NAME"),
        ({"examples__target": {"topic": "git", "rows": 0}}, "examples.target has rows: 0; with topic it is at least 1"),
        ({"examples__target": {"path": "git", "rows": 9}}, "with path all are taken"),
        ({"finetuning__method": "qlora"}, "finetuning.method must be lora or full or masked, got 'qlora' (did you"),
        ({"utility__neighbours": 0}, "utility.neighbours is 0; it must be at least 1"),
        (
            {"mask__selector": "dualsft"},
            "finetuning.method is lora and mask.selector is dualsft; method masked trains what mask.selector chooses",
        ),
        ({"finetuning__method": "masked"}, "finetuning.method is masked and mask.selector is none; method masked"),
        ({"mask__update_steps": 5}, "mask.update_steps is 5 and mask.selector is none; only a mask by dualsft is"),
        ({"mask__update_steps": 0}, "mask.update_steps is 0; it must be at least 1"),
        ({"mask__selector": "fischer"}, "mask.selector must be none or dualsft or fisher or magnitude or random, got"),
        ({"mask__selector": "fischer"}, "got 'fischer' (did you mean 'fisher'?)"),
        ({"mask__budget": {"fraction": 0}}, "mask.budget is fraction: 0, which chooses nothing; it must be above 0"),
        ({"mask__budget": {"fraction": 2}}, "mask.budget is fraction: 2, over 100% of the parameters; 0.3 stands for"),
        ({"mask__budget": {"count": 0.5}}, "mask.budget is count: 0.5; it must be a whole number"),
        ({"mask__budget": {}}, "mask.budget has 0 kinds ({}); give one of count, fraction"),
        ({"mask__budget": {"rows": 3}}, "mask.budget has an unknown 'rows'; give one of count, fraction"),
        (
            {"mask__layer_share": 0.7, "mask__module_share": 0.4},
            "mask.layer_share is 0.7 and mask.module_share 0.4; together they are at most 1",
        ),
        ({"mask__layer_share": -0.1}, "mask.layer_share is -0.1; it must be at least 0"),
        ({"mask__module_share": 1.1}, "mask.module_share is 1.1; it must be at most 1"),
        ({"gradients__temperature": 0}, "gradients.temperature is 0; it must be above 0"),
        ({"gradients__anchor_share": 1}, "gradients.anchor_share is 1; it must be below 1"),
        ({"gradients__fisher_rows": 0}, "gradients.fisher_rows is 0; it must be at least 1"),
        (
            {"selection__selector": "dualsft", "models__dtype": "float16"},
            "models.dtype is float16, in which gradients and second moments underflow to 0; set bfloat16 or float32",
        ),
        ({"runtime": {"pack_tokens": "many"}}, "runtime.pack_tokens must be a whole number, got 'many'"),
        (
            {"utility__neighbors": 4},
            "utility has an unknown 'neighbors' (did you mean 'neighbours'?); known: kernel, ",
        ),
        ({"models__template": REMOVED}, "models lacks template; add it"),
        (
            {"models__langage": "x"},
            "models has an unknown 'langage' (did you mean 'language'?); known: language, langu",
        ),
        ({"scores__less": {"epoch": 1}}, "scores.less has an unknown 'epoch' (did you mean 'epochs'?); known: dim"),
        ({"scores__less": {"epochs": 0}}, "scores.less.epochs is 0; it must be at least 1"),
        ({"scores__less": 4}, "scores.less must hold `name: value` lines, got 4"),
        (
            {"profile": "demo", "profiles": {}},
            "params.yaml has an unknown 'profile'; known: versions, models, examples",
        ),
        ({"audit": REMOVED}, "params.yaml lacks audit; add it (an empty section is written {})"),
        ({"audit": REMOVED, "mask": REMOVED}, "params.yaml lacks mask, audit; add them (an empty section"),
        ({"versions": REMOVED}, "params.yaml lacks versions; add it"),
        ({"utlity": {}}, "params.yaml has an unknown 'utlity' (did you mean 'utility'?)"),
        ({"selection__budget": {"count": 3, "fraction": 0.5}}, "selection.budget has 2 kinds"),
        ({"selection__budget": {}}, "selection.budget has 0 kinds ({}); give one of count, fraction, response_tokens"),
        ({"selection__budget": {"fraction": 0}}, "selection.budget is fraction: 0, which chooses nothing"),
        ({"selection__budget": {"count": 0}}, "selection.budget is count: 0, which chooses nothing"),
        ({"selection__budget": {"fraction": 1.2}}, "fraction: 1.2, over 100% of the pool; 0.3 stands for 30%"),
        ({"selection__budget": {"count": 1.5}}, "selection.budget is count: 1.5; it must be a whole number"),
        (
            {"selection__budget": {"percent": 30}},
            "selection.budget has an unknown 'percent'; give one of count, fraction, resp",
        ),
        (
            {"selection__budget": {"fracton": 0.3}},
            "selection.budget has an unknown 'fracton' (did you mean 'fraction'?)",
        ),
        (
            {"selection__budget": {"fraction": "0.3"}},
            "selection.budget must be `name: a number` pairs, got {'fraction': ",
        ),
        ({"selection__caps": {"food": -1}}, "selection.caps.food is -1; it must be at least 0"),
        (
            {"selection__floors": {"food": 0.5}},
            "selection.floors must be `name: a whole number` pairs, got {'food': 0.5",
        ),
        ({"versions__v1": {}}, "versions.v1 lacks raw, previous; add them"),
        (
            {"versions": {}},
            "versions is empty; add one with `tamis add`, or write it, such as v1: {raw: data/raw/v1, prev",
        ),
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
        ({"versions__v2__previous": 1}, "versions.v2.previous must be text, got 1"),
        ({"finetuning__arms": {"chosen": 0}}, "finetuning.arms must be `name: a list of whole numbers` pairs"),
        ({"finetuning__arms": {"chosen": []}}, "finetuning.arms has chosen: []; give a list of different seeds"),
        (
            {"finetuning__arms": {"random": [1, 1]}},
            "finetuning.arms has random: [1, 1]; give a list of different seeds",
        ),
        ({"finetuning__arms": {"chosen": [-1]}}, "finetuning.arms.chosen.0 is -1; it must be at least 0"),
        ({"finetuning__arms": {"best": [0]}}, "finetuning.arms has an unknown 'best'; known: chosen, random, bal"),
        (
            {"finetuning__arms": {"chosn": [0]}},
            "finetuning.arms has an unknown 'chosn' (did you mean 'chosen'?); known",
        ),
        (
            {"finetuning__arms": {"random": [0], "full": [0]}},
            "finetuning.arms lacks chosen, the rows that selection chose; give it its seeds, such as chosen: [0]",
        ),
        ({"finetuning__arms": {}}, "finetuning.arms lacks chosen, the rows that selection chose"),
        ({"finetuning__learning_rate": "2.0e-4"}, "finetuning.learning_rate must be a number, got '2.0e-4'"),
        ({"finetuning__learning_rate": 0}, "finetuning.learning_rate is 0; it must be above 0"),
        ({"finetuning__whole_model": 1}, "finetuning.whole_model must be true or false, got 1"),
        ({"examples__seed": True}, "examples.seed must be a whole number, got true"),
        ({"evaluation__confidence": 95}, "evaluation.confidence is 95; it must be below 1"),
        ({"models": "llama"}, "models must hold `name: value` lines, got 'llama'"),
    ],
)
def test_value_that_cannot_be_used_is_refused_by_name(refused, changes, text):
    assert text in refused(**changes)


def test_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(params.ParamsError, match=r"there is no .*params\.yaml here; run in the folder of the project"):
        params.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(params.ParamsError, match=r"params\.yaml is not valid YAML: .*line 1"):
        params.read(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "params.yaml is empty; `git checkout` brings the last one back"),
        ("# only a comment\n", "params.yaml is empty; `git checkout` brings the last one back"),
        ("- a\n- b\n", "params.yaml must hold `name: value` lines, got ['a', 'b']"),
        ("utility:\n  kernel: exact\n  kernel: exact\n", "params.yaml gives kernel twice (line 3); keep one of them"),
        ("utility: {}\nmodels: {}\nutility: {}\n", "params.yaml gives utility twice (line 3); keep one of them"),
        ("utility:\n\tkernel: exact\n", "params.yaml is not valid YAML: line 2, column 1: found character '\\t' that"),
        ("utility:\n\tkernel: exact\n", "cannot start any token; indent with blanks, not tabs"),
        ("utility:\n  kernel: exact\n neighbours: 3\n", "params.yaml is not valid YAML: line 3, column 2: "),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_a_line(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(params.ParamsError) as caught:
        params.read(tmp_path / "params.yaml")
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert "allow_duplicate_keys" not in said


def edit(folder: Path, old: str, new: str) -> Path:
    """Write the project's params.yaml with one of its texts replaced by another."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count(old) == 1
    path = folder / "params.yaml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2026-11-01", "versions names 2026-11-01, which YAML reads as a date; write '2026-11-01' in quotes"),
        ("2026", "versions names 2026, which YAML reads as a number; write '2026' in quotes"),
        ("1.5", "versions names 1.5, which YAML reads as a number; write '1.5' in quotes"),
        ("true", "versions names True, which YAML reads as true or false; write 'True' in quotes"),
        ("null", "versions names None, which YAML reads as nothing; write 'None' in quotes"),
        ("a/b", "versions names 'a/b'; a version's name has letters, digits, and . _ - between them"),
        ("a@b", "versions names 'a@b'; a version's name has letters"),
        ("'@b'", "versions names '@b'; a version's name has letters"),
        ("a b", "versions names 'a b'; a version's name has letters"),
        ("''", "versions names ''; a version's name has letters"),
        ("' '", "versions names ' '; a version's name has letters"),
        ("a..b", "versions names 'a..b'; a version's name has letters"),
        ("..", "versions names '..'; a version's name has letters"),
        ("-a", "versions names '-a'; a version's name has letters"),
        (".a", "versions names '.a'; a version's name has letters"),
        ("a.", "versions names 'a.'; a version's name has letters"),
        ("a.lock", "versions names 'a.lock'; a version's name has letters"),
        ('"a\\n"', "versions names 'a\\n'; a version's name has letters"),
        ("é", "versions names 'é'; a version's name has letters"),
        ("v" * 65, "; a version's name has letters, digits, and . _ - between them, 64 at most, such as"),
        ("v;touch${IFS}x", "versions names 'v;touch${IFS}x'; a version's name has letters"),
        ("$(x)", "versions names '$(x)'; a version's name has letters"),
    ],
)
def test_a_name_that_cannot_be_a_versions_is_refused(tmp_path, name, message):
    path = edit(tmp_path, "  v2: {raw", f"  {name}: {{raw")
    for read in (params.read, params.read_versions):
        with pytest.raises(params.ParamsError) as caught:
            read(path)
        assert message in str(caught.value)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    ("old", "dotted"),
    [
        ("learning_rate: 2.0e-4", "finetuning.learning_rate"),
        ("quality_prior: 1", "selection.quality_prior"),
        ("beyond: 2", "selection.gate.beyond"),
        ("caps: {}", "selection.caps.greetings"),
        ("chosen: [0]", "finetuning.arms.chosen.0"),
        ("template_arguments: {}", "models.template_arguments.greetings"),
    ],
)
def test_a_number_that_is_infinite_or_none_is_refused_wherever_it_stands(tmp_path, number, old, dotted):
    key, _, value = old.partition(": ")
    nested = {"{}": f"{{greetings: {number}}}", "[0]": f"[{number}]"}
    path = edit(tmp_path, old, f"{key}: {nested.get(value, number)}")
    with pytest.raises(params.ParamsError, match=rf"^{re.escape(dotted)} is -?(inf|nan); it must be a finite number$"):
        params.read(path)


@pytest.mark.parametrize("name", ["v2", "2026-11", "v" * 64, "'2026-11-01'", "a.b_c-d", "V2"])
def test_a_name_that_can_be_a_versions_is_taken(tmp_path, name):
    assert list(params.read(edit(tmp_path, "  v2: {raw", f"  {name}: {{raw")).versions)[1] == name.strip("'")


def test_a_number_with_an_exponent_alone_is_a_number_as_dvc_reads_it(tmp_path):
    path = edit(tmp_path, "learning_rate: 2.0e-4", "learning_rate: 2e-4")
    assert params.read(path).finetuning.learning_rate == 2e-4
    from dvc.utils.serialize import load_yaml

    assert load_yaml(str(path))["finetuning"]["learning_rate"] == 2e-4


@pytest.mark.parametrize("dotted", ["utility__kernel", "selection__selector"])
def test_a_parameter_that_dvc_follows_may_not_be_left_out(tmp_path, refused, dotted):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    said = refused(**{dotted: REMOVED})
    assert said == f"params.yaml has no {dotted.replace('__', '.')}, which dvc.yaml names; add it"


def test_what_is_misspelt_is_said_before_what_dvc_then_lacks(tmp_path, refused):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    assert "utility has an unknown 'kernl' (did you mean 'kernel'?)" in refused(
        utility__kernel=REMOVED, utility__kernl="exact"
    )


def test_dvc_follows_every_section_but_what_changes_no_figure():
    stages = read_stages(ROOT)
    followed = {dotted.partition(".")[0] for entry in stages.values() for dotted in entry["do"]["params"]}
    assert followed == {*params.SECTIONS} - {*params.OPTIONAL}


def settings_classes() -> list[type]:
    """Return the class of every section, of a section inside one, and of a version."""
    found = [VersionSettings, *params.SECTIONS.values()]
    for kind in found:
        found += [one for one in get_type_hints(kind).values() if is_dataclass(one)]
    return found


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_every_setting_is_described(kind):
    assert kind.__doc__
    described = {name: field.description for name, field in kind.__pydantic_fields__.items()}
    assert list(described) == [field.name for field in fields(kind)]
    assert [name for name, text in described.items() if not text] == []
