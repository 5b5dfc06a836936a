"""What Prefect's page shows of a stage: figures, artifacts and a link; that it is not taken fails nothing."""

import json

import httpx
import pytest
from prefect.client.orchestration import get_client
from worlds.projects import Project, drive_by_flow

from flows import publishing
from flows.graph.dvc_state import File
from flows.graph.stages import Planned

PLANNED = Planned("selection@v1.2_a", "run", (), (), (), (), (), "the chosen examples")
FILES = [File("data/selection/version=v1.2_a/subset.parquet", "md5:0123", 12345)]


@pytest.fixture
def project(run_small) -> Project:
    """The small project, as the current folder."""
    return run_small


def test_each_stage_that_is_not_fresh_publishes_its_result(project):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    drive_by_flow(project)
    with get_client(sync_client=True) as client:
        found = {one.key: one for one in client.read_latest_artifacts()}
    assert {"choose-v1", "total-v1"} <= found.keys()
    assert found["choose-v1"].type == "markdown"
    assert found["choose-v1"].task_run_id is not None
    text = found["choose-v1"].data
    assert text.startswith("`choose@v1` was computed")
    assert "| `data/choose/version=v1/chosen.txt` |" in text
    assert "http://127.0.0.1:8501/?page=rows&version=v1" in text


def test_a_result_is_told_in_figures_with_a_link_to_its_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/selection/version=v1.2_a"
    folder.mkdir(parents=True)
    (folder / "selection.json").write_text(
        json.dumps({"selector": "delift", "chosen_rows": 1500, "topics": {"**a**": 1}})
    )
    text = publishing.describe(PLANNED, "computed", FILES)
    assert "| selector | delift |\n| chosen_rows | 1,500 |" in text
    assert "| `data/selection/version=v1.2_a/subset.parquet` | 12,345 | `md5:0123` |" in text
    assert "?page=gains&version=v1.2_a" in text
    assert "**a**" not in text


def test_losses_beside_chance_are_told_of_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/evaluation/version=v1"
    folder.mkdir(parents=True)
    metrics = {
        "arms": {"chosen": {"loss": 1.5}},
        "differences": {"chosen-random": {"loss": -0.1, "low": -0.2, "high": 0}},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert publishing.read_figures("evaluation", "v1") == {
        "loss of chosen": 1.5,
        "chosen - random, loss": -0.1,
        "chosen - random, low": -0.2,
        "chosen - random, high": 0,
    }


def test_a_page_that_does_not_take_it_is_told_of(monkeypatch, capsys):
    keys = []

    def refuse(text, key, description):
        keys.append(key)
        raise httpx.ConnectError("gone")

    monkeypatch.setattr(publishing, "create_markdown_artifact", refuse)
    publishing.publish(PLANNED, "computed", FILES)
    assert keys == ["selection-v1-2-a"]
    said = capsys.readouterr().err
    assert said == "selection@v1.2_a: Prefect's page does not show its result (ConnectError: gone)\n"
