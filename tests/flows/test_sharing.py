"""`tamis shard`: shares of a stage in processes of their own, and the run that finds what they computed."""

import json
import os

import pytest
from typer.testing import CliRunner
from worlds.projects import run_stages

from flows import sharing
from flows.cli import app
from flows.sharing import ShareError
from tamis.memory import Halving, add_halvings
from tasks.shares import Unfinished


@pytest.fixture
def lacking(real_copy):
    """The project with what utility reads, before utility."""
    run_stages("v1", until="embedding")
    return real_copy


def tamis(*arguments: str):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_shares_fill_the_stores_and_write_no_artifact(lacking):
    first = tamis("shard", "utility", "v1", "1/2", "--json")
    ((told,), out) = (json.loads(first.stdout), lacking.root / "data/utility/version=v1")
    assert (told["stage"], told["share"], told["whole"]) == ("utility@v1", "1/2", False)
    assert "pairs are left to the other shares" in told["left"]
    assert "start those again that are not whole" in first.stderr
    assert tamis("shard", "utility", "v1", "2/2").exit_code == 0
    ((told,),) = (json.loads(tamis("shard", "utility", "v1", "1/2", "--json").stdout),)
    assert (told["whole"], told["left"]) == (True, "")
    assert not out.exists()
    assert not [*(lacking.root / ".cache").glob(".share-*")]
    from flows import stage

    stage.run("utility", "v1")
    assert json.loads((out / "run.json").read_text())["pairs_scored"] == 0


@pytest.mark.parametrize("left", [True, False])
def test_what_memory_made_a_share_halve_is_told(lacking, monkeypatch, left):
    def halve(values, folders, map):
        add_halvings([Halving("pack_tokens", 2048, 512)])
        if left:
            raise Unfinished("3 pairs are left to the other shares")

    monkeypatch.setitem(sharing.STAGES, "utility", halve)
    told = "utility@v1, share 1/2: memory was short: pack_tokens 512 in place of 2,048"
    assert told in " ".join(tamis("shard", "utility", "v1", "1/2").stderr.split())


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ShareError, match=r"is no share; give which of how many, from 1/8 to 8/8"):
        sharing.read_share(share)


def test_a_stage_without_shares_is_refused(real_copy):
    with pytest.raises(ShareError, match=r"'finetuning' is no stage with shares; they are utility, scores, gradients"):
        sharing.run("finetuning", "v1", "1/2", workers="1")


def test_what_a_stage_reads_must_be_up_to_date(real_copy):
    with pytest.raises(ShareError) as found:
        sharing.run("utility", "v1", "1/2", workers="1")
    assert "which utility@v1 reads, is missing; make it first, on one machine: `dvc repro versions/v1/" in str(
        found.value
    )


def test_what_killed_shares_left_is_removed_by_the_next_one(lacking):
    left = lacking.root / ".cache" / f"{sharing.PREFIX}{2**22 + 1}-x"  # no process has such a number
    left.mkdir()
    (left / "half").write_text("x")
    own = lacking.root / ".cache" / f"{sharing.PREFIX}{os.getpid()}-y"
    own.mkdir()
    sharing.clear_left()
    assert (left.exists(), own.exists()) == (False, True)
