"""Stage `selection`, law: rows that repeat a text count like one row of that text which weighs as much."""

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from worlds.toy_corpus import row, write_rows
from worlds.toy_selection import HALF, chosen, draw_vectors, run, write_check, write_embedding, write_utility

from tamis.scores.gates import level
from tamis.submodular.kernels import SparseKernel
from tasks.selection import inputs
from tasks.selection.rows import read_rows

ROWS = 12
TIMES = [1, 3, 1, 1, 4, 1, 2, 1, 1, 1, 5, 1]  # how often each text stands in the pool
VECTORS = draw_vectors(ROWS)
UTILITY = np.random.default_rng(4).normal(size=(ROWS, ROWS)).astype(np.float32) + 4 * np.eye(ROWS, dtype=np.float32)
NEAR = np.argsort(np.argsort(-(VECTORS @ VECTORS.T), axis=1), axis=1) < 4  # a row and its three nearest


@pytest.fixture(params=[0, 1])
def pools(tmp_path, request):
    """A pool whose rows repeat texts, in one order or another, and the pool of its texts, weighed; and their ids."""
    order = np.random.default_rng(request.param).permutation(np.repeat(np.arange(ROWS), TIMES))
    first: dict[int, int] = {}
    rows, names = [], []
    for place, text in enumerate(order.tolist()):
        one, number = row(text, "pool"), names.count(text) + 1
        again = {} if number == 1 else {"id": f"{one['id']}-{number}", "duplicate_of": first[text]}
        rows.append(one | {"row": place} | again)
        first.setdefault(text, place)
        names.append(text)
    texts = [
        one | {"weight": float(TIMES[text])} for text, one in zip(names, rows, strict=True) if "duplicate_of" not in one
    ]
    told = {one["id"]: text for one, text in zip(rows, names, strict=True)}
    for name, some in (("repeated", rows), ("weighed", texts)):
        ids = write_rows(tmp_path / name / "examples", some)
        write_embedding(tmp_path / name / "embedding", ids, VECTORS[[told[each] for each in ids]])
    return tmp_path, told, [one["id"] for one in texts]


def score(folder, told, ids, *, in_kernel=NEAR, keep=None, kernel="neighbours") -> None:
    """Write the utilities of the texts, whose ids stand in the order of their first rows."""
    places = np.ix_(*[[told[each] for each in ids]] * 2)
    kept = in_kernel if keep is None else keep
    for name in ("repeated", "weighed"):
        write_utility(
            folder / name / "utility",
            ids,
            UTILITY[places],
            keep=kept[places],
            in_kernel=in_kernel[places],
            kernel=kernel,
        )
        write_check(folder / name / "utility", ids[:4], ids, UTILITY[places][:4])


def choose_both(folder, told, settings) -> tuple[list[list[int]], list[dict]]:
    """Return the texts chosen from both pools, in their order, and what is said of the choices."""
    found = [run(folder / name, settings, diagonal="capped") for name in ("repeated", "weighed")]
    return [[told[each] for each in chosen(subset)] for subset, _ in found], [facts for _, facts in found]


HELPED = np.zeros((ROWS, ROWS), bool)
HELPED[[2, 9]] = True
HELPED &= ~np.eye(ROWS, dtype=bool)


@pytest.mark.parametrize("quality", ["none", "help", "neighbours"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("stratify", ["none", "topic"])
def test_pairs_of_texts_hold_for_all_rows_that_repeat_them(pools, quality, exact, stratify):
    folder, told, ids = pools
    whole = np.ones((ROWS, ROWS), bool)
    kernel = whole if exact else NEAR
    score(folder, told, ids, in_kernel=kernel, keep=whole if exact else NEAR | HELPED)
    asked = replace(HALF, quality=quality, stratify=stratify, budget={"count": 6})
    texts, facts = choose_both(folder, told, asked)
    assert facts[0]["strata"] == facts[1]["strata"]
    gaining = 6 - facts[1]["zero_gain_picks"]
    assert gaining > 1
    assert texts[0][:gaining] == texts[1][:gaining]
    assert len(set(texts[0])) == 6
    assert facts[0]["objective"] == pytest.approx(facts[1]["objective"])
    assert facts[0]["objective_of_all"] == pytest.approx(facts[1]["objective_of_all"])
    assert (
        facts[0]["checked"]["facility_location_share"] == pytest.approx(facts[1]["checked"]["facility_location_share"])
        or gaining < 6
    )


def test_embeddings_of_many_rows_find_the_nearest_other_texts(pools, monkeypatch):
    folder, told, ids = pools
    monkeypatch.setattr(inputs, "DENSE_ROWS", 4)
    monkeypatch.setattr(inputs, "NEAREST", 3)
    score(folder, told, ids, keep=NEAR | HELPED)
    for quality in ("none", "help"):
        asked = replace(HALF, selector="embedding", quality=quality, budget={"count": 5})
        texts, facts = choose_both(folder, told, asked)
        assert facts[0]["objective"] == pytest.approx(facts[1]["objective"])
        assert texts[0] == texts[1]


def test_repeats_are_chosen_after_all_texts_and_a_whole_pool_can_be(pools):
    folder, told, ids = pools
    score(folder, told, ids)
    subset, _ = run(folder / "repeated", replace(HALF, quality="help", budget={"count": 20}), diagonal="capped")
    texts = [told[each] for each in chosen(subset)]
    assert len(set(texts[:ROWS])) == ROWS
    assert len(set(texts)) == ROWS
    everything, _ = run(folder / "repeated", replace(HALF, budget={"fraction": 1.0}), "all", diagonal="capped")
    assert len(chosen(everything)) == sum(TIMES)


def test_a_gate_by_help_takes_repeats_as_one(pools):
    folder, told, ids = pools
    score(folder, told, ids, keep=NEAR | HELPED, kernel="exact")
    subset, facts = run(
        folder / "repeated", replace(HALF, gate={"by": "help", "drop": 0.25}, budget={"count": 4}), diagonal="capped"
    )
    left = {told[each["id"]] for each in subset if each["gated"]}
    assert facts["gate"]["unscored"] == 0
    assert facts["gate"]["gated_rows"] == sum(TIMES) // 4
    assert left
    worth = np.nanmean(np.where(np.eye(ROWS, dtype=bool) | ~(NEAR | HELPED), np.nan, UTILITY), axis=0)
    assert [one["gate_score"] for one in subset] == pytest.approx([worth[told[one["id"]]] for one in subset])
    unlike = level(np.array([one["gate_score"] for one in subset]), [one["topic"] for one in subset])
    gated = np.array([one["gated"] for one in subset])
    assert unlike[gated].max() <= unlike[~gated].min()


def test_the_kernel_stays_sparse(pools):
    folder, told, ids = pools
    score(folder, told, ids)
    rows, counts = read_rows(folder / "repeated/examples/examples.parquet"), np.array(TIMES)
    kernel = inputs.read_utility(folder / "repeated/utility/utility.parquet", rows, HALF, "capped").kernels.own
    assert isinstance(kernel, SparseKernel)
    assert kernel.shape == (sum(TIMES), sum(TIMES))
    assert len(kernel.values) == (NEAR * counts[:, None] * counts[None, :]).sum()


def test_each_text_is_scored_once(pools):
    folder, _, ids = pools
    rows = read_rows(folder / "repeated/examples/examples.parquet")
    assert rows.ground.num_rows == sum(TIMES)
    assert rows.scored == ids
    assert pc.count_distinct(rows.ground["first"]).as_py() == ROWS
