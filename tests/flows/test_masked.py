"""Both methods together, on the real graph: DELIFT's rows train inside DualSFT's mask, version after version."""

import contextlib
import json

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner
from worlds.projects import GRAPHS, Change, Project, copy_real, run_dvc, run_stages, start_project

from flows import params
from flows.cli import app
from flows.stage_calls import folder, language

MASKED = (
    Change("params.yaml", "validation_every: null", "validation_every: 5", ()),
    Change("params.yaml", "selector: none", "selector: dualsft", ()),
    Change("params.yaml", "method: lora", "method: masked", ()),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory, toy_folder) -> Project:
    """Two versions, run to the end."""
    root = tmp_path_factory.mktemp("masked") / "project"
    copy_real(root, str(toy_folder))
    project = start_project(root)
    for change in (*MASKED, GRAPHS["real"].version):
        project.apply(change)
    with contextlib.chdir(root):
        for version in ("v1", "v2"):
            run_stages(version)
    return project


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project.root)
    return project


def ask(query: str) -> list[list[str]]:
    """Return what `tamis sql` prints, without the heading."""
    answer = CliRunner().invoke(app, ["sql", query])
    assert answer.exit_code == 0, answer.output
    return [line.split(",") for line in answer.stdout.splitlines()[1:]]


def read_metrics(name: str, version: str, file: str):
    return json.loads((folder(name, version) / file).read_text())


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_each_version_has_delifts_rows_and_a_mask_of_its_own(inside, version):
    chosen = read_metrics("selection", version, "selection.json")
    assert chosen["selector"] == "delift"
    assert chosen["mask"]["by"] == "dualsft"
    assert chosen["mask"]["chosen"] == int(0.1 * chosen["mask"]["entries"])
    assert read_metrics("gradients", version, "gradients.json")["law_residual"] < 1e-5
    assert read_metrics("finetuning", version, "finetuning.json")["method"] == "masked"


def test_the_second_version_goes_on_from_the_deltas_of_the_first(inside):
    assert read_metrics("finetuning", "v2", "finetuning.json")["continues_from"] == "chosen-0"
    first, second = (load_file(folder("finetuning", v) / "arms/chosen-0/delta.safetensors") for v in ("v1", "v2"))
    entries = [sum(tensor.numel() for tensor in one.values()) for one in (first, second)]
    assert entries[1] > entries[0]


def test_both_versions_are_evaluated_and_audited(inside):
    continual = read_metrics("evaluation", "v2", "metrics.json")["continual"]
    assert set(continual["stability"]) == {"chosen", "random", "full"}
    assert ask("SELECT count(*) FROM audit WHERE NOT passed") == [["0"]]


def test_the_masks_of_two_versions_are_compared_in_sql(inside):
    query = (
        "SELECT tensor, sum(len(list_intersect(one.columns, two.columns))) AS shared FROM mask one JOIN mask two "
        "USING (tensor, row) WHERE one.version = 'v1' AND two.version = 'v2' GROUP BY tensor ORDER BY shared DESC"
    )
    shared = ask(query)
    assert int(shared[0][1]) > 0


def test_the_drivers_find_nothing_left_to_do(inside):
    assert inside.status() == {}
    assert "Running stage" not in run_dvc(inside, "repro").stdout


def test_a_merged_model_is_a_folder_that_transformers_loads(inside, tmp_path):
    from transformers import AutoModelForCausalLM

    answer = CliRunner().invoke(app, ["merge", "v2", str(tmp_path / "merged")])
    assert answer.exit_code == 0, answer.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(language(params.read()).name)
    pairs = zip(merged.parameters(), base.parameters(), strict=True)
    moved = sum(int((one != other).sum()) for one, other in pairs)
    delta = load_file(folder("finetuning", "v2") / "arms/chosen-0/delta.safetensors")
    assert 0 < moved <= sum(tensor.numel() for tensor in delta.values())
