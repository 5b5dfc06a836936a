"""Masks against a full sort: every entry in one list, quotas taken from its front."""

import numpy as np
import pytest
import torch

from tamis.masks import topk
from tamis.masks.tensor_layout import MaskError, locate

SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    **{f"model.layers.{n}.self_attn.{m}_proj.weight": (8, 8) for n in range(3) for m in "qkvo"},
    **{f"model.layers.{n}.mlp.{m}_proj.weight": (16, 8) for n in range(3) for m in ("gate", "up")},
    **{f"model.layers.{n}.input_layernorm.weight": (8,) for n in range(3)},
    "model.norm.weight": (8,),
    "score.odd": (5,),
}
ENTRIES = sum(int(np.prod(shape)) for shape in SHAPES.values())


def sorted_mask(shapes, scores, k, signed=False, layer_share=0.2, module_share=0.2):
    """Sort all entries; layers, then modules, then all take theirs from the front, equal parts and the rest to the
    first."""
    names = list(shapes)
    order = []
    for number, name in enumerate(names):
        for place, score in enumerate(np.asarray(scores[name], np.float64).ravel().tolist()):
            order.append((-(score if signed else abs(score)), number, place))
    order.sort()
    chosen = []

    def take(wanted, count):
        free = [one for one in order if one not in taken and wanted(names[one[1]])]
        chosen.extend(free[:count])
        taken.update(free[:count])

    taken = set()
    layers = sorted({locate(name)[0] for name in names} - {None})
    modules = list(dict.fromkeys(locate(name)[1] for name in names))
    for kind, labels, share in ((0, layers, layer_share), (1, modules, module_share)):
        total = int(share * k + 1e-9)
        for nth, label in enumerate(labels):
            count = total // len(labels) + (nth < total % len(labels))
            take(lambda name, kind=kind, label=label: locate(name)[kind] == label, count)
    take(lambda name: True, k - len(chosen))
    found = {name: sorted(one[2] for one in chosen if names[one[1]] == name) for name in names}
    return {name: places for name, places in found.items() if places}


def draw(seed, levels=None, dtype=np.float32):
    """Heavy-tailed scores of different size per tensor; rounded to few levels where ties are wanted."""
    generator = np.random.default_rng(seed)
    scores = {}
    for name, shape in SHAPES.items():
        values = generator.normal(size=shape) ** 3 * np.exp(generator.normal())
        scores[name] = (np.round(values * levels) / levels if levels else values).astype(dtype)
    return scores


def choose(scores, k, **how):
    mask, cut = topk.choose(SHAPES, scores.__getitem__, k, **how)
    return {name: places.tolist() for name, places in mask.items()}, cut


@pytest.mark.parametrize("k", [1, 7, 129, 700, ENTRIES - 1, ENTRIES])
@pytest.mark.parametrize("signed", [False, True])
def test_the_mask_is_that_of_a_full_sort(k, signed):
    scores = draw(k)
    assert choose(scores, k, signed=signed)[0] == sorted_mask(SHAPES, scores, k, signed)


@pytest.mark.parametrize("levels", [0.01, 1, 4])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("k", [50, 400, 1000])
def test_ties_go_to_the_first_tensor_and_the_lowest_index(levels, signed, k):
    scores = draw(3, levels)
    assert choose(scores, k, signed=signed)[0] == sorted_mask(SHAPES, scores, k, signed)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.3, 0.7), (0.9, 0.05)])
@pytest.mark.parametrize("levels", [None, 2])
def test_quotas_of_any_share_are_those_of_a_full_sort(shares, levels):
    scores, how = draw(5, levels), dict(zip(("layer_share", "module_share"), shares, strict=True))
    for k in (60, 300, 900):
        assert choose(scores, k, **how)[0] == sorted_mask(SHAPES, scores, k, **how)


@pytest.mark.parametrize("seed", range(10))
def test_scores_that_share_a_bin_are_told_apart(seed):
    scores = {name: np.float32(1) + values * np.float32(1e-6) for name, values in draw(seed).items()}
    assert choose(scores, 300)[0] == sorted_mask(SHAPES, scores, 300)


@pytest.mark.parametrize("signed", [False, True])
def test_float64_scores_are_told_apart_to_the_last_bit(signed):
    scores = {name: (1 + values * 1e-13) * -1 for name, values in draw(1, dtype=np.float64).items()}
    assert choose(scores, 300, signed=signed)[0] == sorted_mask(SHAPES, scores, 300, signed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_of_narrow_types_are_read_as_they_are(dtype):
    scores = {name: torch.from_numpy(values).to(dtype) for name, values in draw(2).items()}
    wide = {name: values.float().numpy() for name, values in scores.items()}
    assert choose(scores, 300)[0] == sorted_mask(SHAPES, wide, 300)


def test_the_largest_chosen_score_left_out_is_no_larger_than_the_least_chosen_without_quotas():
    scores = draw(8)
    mask, _ = topk.choose(SHAPES, scores.get, 200, layer_share=0.0, module_share=0.0)
    chosen = np.concatenate([np.abs(scores[name].ravel()[places]) for name, places in mask.items()])
    everything = np.sort(np.concatenate([np.abs(values.ravel()) for values in scores.values()]))
    assert np.array_equal(np.sort(chosen), everything[-200:])


def test_scaling_all_scores_by_a_power_of_two_leaves_the_mask():
    scores = draw(4)
    assert choose({name: values * 64 for name, values in scores.items()}, 300)[0] == choose(scores, 300)[0]


def test_signed_scores_choose_the_largest_not_the_farthest_from_zero():
    shapes, scores = {"fc1.weight": (4,)}, {"fc1.weight": np.float32([-9, 1, -0.0, 0.0])}
    mask, cut = topk.choose(shapes, scores.get, 2, signed=True)
    assert (mask["fc1.weight"].tolist(), cut.ties, cut.ties_left) == ([1, 2], 1, 1)


def test_scores_that_are_all_zero_choose_the_first_entries_and_say_so():
    scores = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    mask, cut = choose(scores, 300)
    assert mask == sorted_mask(SHAPES, scores, 300)
    assert (cut.tie_share, cut.zeros, cut.ties) == (1.0, ENTRIES, 300)


def test_ties_are_counted_only_where_one_of_them_is_left_out():
    shapes = {"a": (4,), "b": (3,)}
    scores = {"a": np.float32([5, 2, 2, 1]), "b": np.float32([2, 2, 0])}
    counts = {k: topk.cut(shapes, scores.get, k, layer_share=0.0, module_share=0.0) for k in (1, 2, 4, 5, 7)}
    assert {k: (cut.ties, cut.ties_left) for k, cut in counts.items()} == {
        1: (0, 0),
        2: (1, 3),
        4: (3, 1),
        5: (0, 0),
        7: (0, 0),
    }


def test_a_group_too_small_for_its_quota_leaves_the_rest_to_the_largest_entries():
    shapes, scores = {"norm.weight": (2,), "fc1.weight": (90,)}, {}
    scores = {"norm.weight": np.float32([1e-9, 0]), "fc1.weight": np.arange(1, 91, dtype=np.float32)}
    mask, _ = topk.choose(shapes, scores.get, 40, module_share=0.5)
    assert [len(places) for places in mask.values()] == [2, 38]


def test_exactly_k_entries_are_chosen_and_each_once():
    for k in (1, 50, 333, ENTRIES):
        mask, cut = topk.choose(SHAPES, draw(6, 2).get, k)
        assert sum(len(places) for places in mask.values()) == k == sum(cut.chosen.values())
        assert all((np.diff(places) > 0).all() and places.dtype == np.int32 for places in mask.values())


def test_the_same_scores_give_the_same_bits():
    first, second = (topk.choose(SHAPES, draw(9, 4).get, 300)[0] for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first.keys() == second.keys()


def test_a_tensor_is_read_twice_for_the_cut_and_once_for_the_mask():
    scores, reads = draw(0), []
    topk.choose(SHAPES, lambda name: (reads.append(name), scores[name])[1], 300)
    assert max(reads.count(name) for name in SHAPES) <= 3


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({"count": 0}, "chooses 0 of 100 parameters; give 1 to 100"),
        ({"fraction": 0.001}, "chooses 0 of 100 parameters"),
        ({"count": 101}, "chooses 101 of 100 parameters"),
        ({"fraction": 1.5}, "a fraction at most 1"),
        ({"count": 2.5}, "a count is a whole number"),
        ({"rows": 3}, "give one number, as count or fraction"),
        ({"count": "many"}, "give one number, as count or fraction"),
        ({}, "give one number, as count or fraction"),
    ],
)
def test_a_budget_that_cannot_be_met_says_why(budget, text):
    with pytest.raises(MaskError, match=text):
        topk.resolve(budget, 100)


def test_quota_shares_above_one_in_sum_are_refused():
    with pytest.raises(
        MaskError, match=r"0\.7 \(layers\) and 0\.4 \(modules\); each is at least 0, together at most 1"
    ):
        topk.cut(SHAPES, draw(0).get, 10, layer_share=0.7, module_share=0.4)


def test_a_cut_of_more_parameters_than_there_are_is_refused():
    with pytest.raises(MaskError, match=f"{ENTRIES + 1} of {ENTRIES} parameters are to be chosen"):
        topk.cut(SHAPES, draw(0).get, ENTRIES + 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_named(bad):
    scores = draw(0)
    scores["model.norm.weight"][[3, 5]] = bad
    with pytest.raises(MaskError, match=r"2 of 8 scores of model\.norm\.weight are not finite, first entry 3: "):
        topk.cut(SHAPES, scores.get, 10)


def test_scores_of_another_size_are_refused():
    scores = draw(0) | {"score.odd": np.zeros(4, np.float32)}
    with pytest.raises(MaskError, match=r"score\.odd are float32 \(4,\); floating numbers of shape \(5,\) are wanted"):
        topk.cut(SHAPES, scores.get, 10)


def test_scores_of_two_types_are_refused():
    scores = draw(0) | {"score.odd": np.zeros(5)}
    with pytest.raises(MaskError, match=r"score\.odd are float64 and those before it float32"):
        topk.cut(SHAPES, scores.get, 10)


def test_scores_that_change_between_readings_are_refused():
    scores = draw(0)
    found = topk.cut(SHAPES, scores.get, 300)
    small = {name: values * 0 for name, values in scores.items()}
    with pytest.raises(MaskError, match="changed between two readings"):
        dict(topk.pick(found, small.get))
