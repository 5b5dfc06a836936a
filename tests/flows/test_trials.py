"""A stage that is run apart keeps what it says of its run, and says what memory made it halve."""

import pytest
from worlds.projects import Project, copy_real, start_project

from flows import params, stage, trials
from tamis.memory import Halving, add_halvings


@pytest.fixture
def project(tmp_path, toy_folder, monkeypatch) -> Project:
    copy_real(tmp_path / "project", str(toy_folder))
    monkeypatch.chdir(tmp_path / "project")
    return start_project(tmp_path / "project")


def test_what_was_halved_is_kept_and_told(project, monkeypatch, capsys):
    def halve(values, folders, map):
        folders.here.examples.mkdir(parents=True, exist_ok=True)
        add_halvings([Halving("pack_tokens", 2048, 512)])
        return {"rows": 3}

    monkeypatch.setitem(trials.STAGES, "examples", halve)
    add_halvings([Halving("pack_tokens", 2048, 1)])  # of a stage before that failed
    made = [trials.attempt("examples", "v1", params.read(), {}, stage.sources(["examples@v1"])) for _ in range(2)]
    told = {"rows": 3, "halved": [{"what": "pack_tokens", "asked": 2048, "used": 512}]}
    assert [dict(one.notes) for one in made] == [told, told]  # the second finds what is kept
    assert capsys.readouterr().err.count("memory was short: pack_tokens 512 in place of 2,048; results differ by") == 1
