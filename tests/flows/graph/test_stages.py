"""dvc.yaml as it is resolved without DVC is what DVC resolves, for any number of versions."""

from pathlib import Path

import pytest
import yaml
from worlds.projects import GRAPHS, Project

from flows import params
from flows.graph import dvc_files
from flows.graph.stages import in_order, needs, read_graph
from tasks.settings import VersionSettings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(tmp_path, monkeypatch) -> Project:
    """The small project, as the current folder."""
    GRAPHS["small"].make(tmp_path / "small", "")
    monkeypatch.chdir(tmp_path / "small")
    return Project(tmp_path / "small")


def test_needs_are_the_files_and_values_that_dvc_lists():
    files, values = needs("utility@v1", ROOT)
    assert files[:2] == ["data/examples/version=v1/examples.parquet", "data/embedding/version=v1/embedding.parquet"]
    assert values["selection.selector"] == "embedding"
    assert values["utility"] == yaml.safe_load((ROOT / "params.yaml").read_text())["utility"]


def test_needs_may_be_asked_of_other_versions():
    files, _ = needs("examples@x", ROOT, {"x": VersionSettings("raw/x", "v1")})
    assert files[:2] == ["raw/x", "data/examples/version=v1/examples.parquet"]


def test_graph_and_needs_equal_what_dvc_resolves(monkeypatch):
    from dvc.repo import Repo, lock_repo

    monkeypatch.chdir(ROOT)
    graph = read_graph()
    makers = {path: address for address, one in graph.items() for path in one.outputs}
    with Repo(".") as repo, lock_repo(repo):
        stages = [stage for version in ("v1", "v2") for stage in repo.stage.load_all(str(dvc_files.place(version)))]
    assert [stage.name for stage in stages] == list(graph)
    for stage in stages:
        planned = graph[stage.name]
        files, values = needs(stage.name)
        assert files == list(planned.inputs) == [dep.def_path for dep in stage.deps if dep not in stage.params]
        assert set(values) == set(planned.parameters) == {key for dep in stage.params for key in dep.params}
        assert set(planned.outputs) == {out.def_path for out in stage.outs}
        assert set(planned.held) == {out.def_path for out in stage.outs if not out.use_cache}
        assert (planned.command, planned.about) == (stage.cmd, stage.desc)
        assert set(planned.upstream) == {makers[path] for path in planned.inputs if path in makers}


def test_dvc_finds_one_stage_in_dvc_yaml_itself_which_reads_what_comes_last(monkeypatch):
    from dvc.repo import Repo, lock_repo

    monkeypatch.chdir(ROOT)
    with Repo(".") as repo, lock_repo(repo):
        (whole,) = repo.stage.load_all("dvc.yaml")
    last = list(read_graph())[-1].partition("@")[0]
    assert [dep.def_path for dep in whole.deps] == [f"data/{last}"]


@pytest.mark.parametrize("address", ["utilty@v1", "utility@v9", "utility", "all", "all@v1"])
def test_unknown_stage_is_refused_with_those_that_exist(address):
    with pytest.raises(params.ParamsError, match=rf"there is no stage {address}.*known: examples@v1, embedding@v1"):
        needs(address, ROOT)


def test_graph_without_a_stage_for_versions_is_refused(small):
    text = (small.root / "dvc.yaml").read_text()
    (small.root / "dvc.yaml").write_text(text.replace("${copied}", "${versions}"))
    with pytest.raises(params.ParamsError, match=r"dvc\.yaml has no stage `foreach: \$\{copied\}`"):
        read_graph()


def test_artifact_inside_of_a_folder_that_a_stage_makes_has_that_stage_upstream(small):
    old = "small/total.py]"
    small.edit("dvc.yaml", old, old.replace("]", ', "data/letters/version=${key}/letters.txt/part"]'))
    assert read_graph()["total@v1"].upstream == ("choose@v1", "letters@v1")


def test_a_long_chain_is_put_in_order():
    edges = {str(place): [str(place - 1)] for place in range(1, 5000)}
    assert list(in_order(["4999"], edges)) == [str(place) for place in range(5000)]


def test_a_circle_comes_to_an_end():
    assert sorted(in_order(["a"], {"a": ["b"], "b": ["a"]})) == ["a", "b"]
