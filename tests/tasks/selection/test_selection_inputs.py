"""The stage `selection` on what the stages before it write, with the toy model."""

from dataclasses import replace

import pytest
from worlds import toy_gradients, toy_pairs
from worlds.toy_corpus import write_examples
from worlds.toy_selection import chosen, run

from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.masks.mask_tables import BY_GRADIENTS, read_mask
from tasks.masks.settings import MaskSettings
from tasks.selection.settings import SelectionSettings
from tasks.utility.settings import UtilitySettings

THREE = SelectionSettings(budget={"count": 3})
KERNELS = {
    "exact": toy_pairs.EXACT,
    "neighbours": UtilitySettings(kernel="neighbours", neighbours=3, check_targets=2),
    "landmarks": UtilitySettings(kernel="landmarks", landmarks=4, check_targets=2),
}


@pytest.fixture
def folder(tmp_path, toy):
    """A pool of eight rows, three of the target task and two that were learnt, embedded."""
    write_examples(tmp_path / "examples", pool=8, held_out=1, target=3, learnt=2)
    toy_pairs.embed(tmp_path, toy)
    return tmp_path


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_objective_reads_what_every_kernel_writes(folder, toy, kernel):
    toy_pairs.run(folder, toy, KERNELS[kernel], out="utility")
    for objective in ("conditional_gain", "facility_location", "mutual_information"):
        subset, facts = run(folder, replace(THREE, objective=objective, scaling="minmax"))
        assert len(set(chosen(subset))) == facts["chosen_rows"] == 3
        assert 0 < facts["objective_share"] <= 1
        assert (facts["learnt_rows"], facts["target_rows"]) == (2, 3)
        assert facts["checked"] is None if kernel == "exact" else facts["checked"]["targets"] == 2


@pytest.mark.parametrize("selector", ["embedding", "deft_ucs"])
def test_embeddings_are_read_as_they_are_written(folder, selector):
    assert len(chosen(run(folder, replace(THREE, selector=selector))[0])) == 3


def test_a_budget_above_the_landmarks_of_the_room_utility_is_refused(folder, toy):
    toy_pairs.run(folder, toy, KERNELS["landmarks"], out="utility")
    with pytest.raises(ValueError, match=r"allows 5 rows, but only 4 landmarks of 8 rows are scored as demos"):
        run(folder, replace(THREE, budget={"count": 5}))


@pytest.mark.parametrize("mask_selector", BY_GRADIENTS)
def test_scores_of_rows_and_parameters_are_read_as_gradients_writes_them(tmp_path, toy, mask_selector):
    write_examples(tmp_path / "examples", pool=14, held_out=2, validation=2)
    toy_gradients.run(tmp_path, toy, out="gradients", mask_selector=mask_selector)
    mask = MaskSettings(selector=mask_selector)
    subset, facts = run(tmp_path, replace(THREE, selector="dualsft"), model=toy, mask=mask)
    phi = read_table(tmp_path / "gradients/phi_data.parquet", schemas.PHI_DATA).to_pylist()
    assert chosen(subset) == [row["id"] for row in sorted(phi, key=lambda row: -row["score"])[:3]]
    assert facts["not_scored"] == 14 - len(phi) == 0
    assert sum(map(len, read_mask(tmp_path / "out", toy).values())) == facts["mask"]["chosen"]
