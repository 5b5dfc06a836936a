"""Selector `probes`: the pairs that stage `utility` scores for it, and the rows that selection makes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from worlds.toy_corpus import write_examples
from worlds.toy_pairs import EXACT, embed, pairs_of, run
from worlds.toy_selection import HALF, chosen, write_utility
from worlds.toy_selection import run as select

from tamis.utility.probes import pairs_of_probes
from tasks.artifacts.tables import provenance, read_lists, read_table
from tasks.selection.inputs import read_probes
from tasks.selection.rows import SelectionError, read_rows
from tasks.utility.settings import ProbesSettings

SETTINGS = replace(EXACT, probes=ProbesSettings(nearest=5, clusters=2, probes=3))


@pytest.fixture
def folders(tmp_path, toy):
    """Examples and embeddings of eight rows of the pool, two of the target task and one learnt."""
    ids = write_examples(tmp_path / "examples", pool=8, target=2, learnt=1)
    embed(tmp_path, toy)
    return tmp_path, ids


def find_probes(folder, ids, out="out") -> set[tuple[str, str]]:
    """The pairs that embeddings and distances of the artifact ask for."""
    table = read_table(folder / "embedding/embedding.parquet")["id"].to_pylist()
    vectors = read_lists(folder / "embedding/embedding.parquet", "embedding")[[table.index(name) for name in ids]]
    alone = {row["id"]: row for row in read_table(folder / out / "distances.parquet").to_pylist()}
    difficulty = np.array([alone[name]["distance"] for name in ids])
    how = {"nearest": 5, "clusters": 2, "probes": 3, "seed": 0}
    pairs, _ = pairs_of_probes(np.arange(len(ids)), vectors, difficulty, **how)
    return {(ids[target], ids[demo]) for target, demo in pairs}


def test_each_row_is_the_demo_of_its_probes_and_of_no_other_row(folders, toy):
    tmp_path, ids = folders
    facts = run(tmp_path, toy, SETTINGS, kernel="probes")
    assert set(pairs_of(tmp_path / "out/utility.parquet")) == find_probes(tmp_path, ids)
    assert (facts["pairs_scored"], facts["alone_scored"]) == (3 * 8, 10)
    assert not read_table(tmp_path / "out/checked.parquet").num_rows


def test_utilities_are_those_of_the_exact_kernel(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, SETTINGS, kernel="probes")
    run(tmp_path, toy, SETTINGS, out="exact", store="apart")
    exact = pairs_of(tmp_path / "exact/utility.parquet")
    for pair, utility in pairs_of(tmp_path / "out/utility.parquet").items():
        assert utility == pytest.approx(exact[pair], abs=1e-5)


def test_pairs_are_shared_with_the_kernels(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, SETTINGS)
    assert run(tmp_path, toy, SETTINGS, kernel="probes", out="other")["pairs_scored"] == 0


def test_the_artifact_says_that_its_pairs_are_those_of_probes(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, SETTINGS, kernel="probes")
    parameters = provenance(tmp_path / "out/utility.parquet")["parameters"]
    assert (parameters["kernel"], parameters["probes"]) == ("probes", {"nearest": 5, "clusters": 2, "probes": 3})
    assert json.loads((tmp_path / "out/utility.json").read_text())["kernel"] == "probes"


def test_a_second_run_scores_nothing_and_gives_the_same_bytes(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, SETTINGS, kernel="probes")
    again = run(tmp_path, toy, SETTINGS, kernel="probes", out="again")
    assert (again["pairs_scored"], again["alone_scored"], again["shards"]) == (0, 0, 0)
    first, second = ((tmp_path / out / "utility.parquet").read_bytes() for out in ("out", "again"))
    assert first == second


def test_the_log_likelihood_tells_the_hard_rows_where_it_is_the_distance(folders, toy):
    tmp_path, ids = folders
    run(tmp_path, toy, replace(SETTINGS, distance="log_likelihood"), kernel="probes")
    alone = {row["id"]: -row["log_likelihood"] for row in read_table(tmp_path / "out/distances.parquet").to_pylist()}
    hardest = max(ids, key=alone.get)
    asked = [demo for target, demo in pairs_of(tmp_path / "out/utility.parquet") if target == hardest]
    assert len(asked) >= 4  # of the 7 others, those near it


def test_rows_are_chosen_by_their_mean_help_for_their_probes(folders, toy):
    tmp_path, ids = folders
    run(tmp_path, toy, SETTINGS, kernel="probes", out="utility")
    pairs = pairs_of(tmp_path / "utility/utility.parquet")
    help_of = {name: np.mean([value for (_, demo), value in pairs.items() if demo == name]) for name in ids}
    subset, facts = select(tmp_path, replace(HALF, selector="probes"))
    assert chosen(subset) == sorted(ids, key=lambda name: -help_of[name])[:4]
    assert (facts["selector"], facts["objective"], facts["not_scored"]) == ("probes", None, 0)


def test_rows_without_a_scored_pair_have_the_median_of_their_topic(tmp_path):
    ids = write_examples(tmp_path / "examples")  # topics in turn: 0 and 3, 1 and 4, 2 and 5
    help_of = [0.1, 0.4, 0.2, None, 0.3, 0.6]
    matrix = np.zeros((6, 6))
    keep = np.zeros((6, 6), bool)
    for demo, value in enumerate(help_of):
        if value is not None:
            matrix[(demo + 1) % 6, demo], keep[(demo + 1) % 6, demo] = value, True
    write_utility(tmp_path / "utility", ids, matrix, keep=keep, kernel="probes")
    assert read_probes(
        tmp_path / "utility/utility.parquet", read_rows(tmp_path / "examples/examples.parquet")
    ).tolist() == (pytest.approx([0.1, 0.4, 0.2, 0.1, 0.3, 0.6]))


def test_pairs_of_another_kernel_are_refused(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, SETTINGS, out="utility")
    with pytest.raises(SelectionError, match=r"holds pairs of kernel exact, not of probes; make it again: `tamis run`"):
        select(tmp_path, replace(HALF, selector="probes"))
