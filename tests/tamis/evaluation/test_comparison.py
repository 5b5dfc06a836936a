"""A comparison says how far each choice is from chance, and what it learnt and forgot."""

import numpy as np
import pytest

from tamis.evaluation.comparison import Cell, Measured, compare

BUDGETS = ("0.1", "0.3")


def make_losses(seed=0, seeds=3, rows=40, mask="none"):
    generator = np.random.default_rng(seed)
    rows_alone = generator.normal(3, 1, rows)
    shift = {"random": 0.0, "good": -0.5, "equal": 0.0}
    losses = {
        Cell(name, mask, budget): rows_alone + effect + generator.normal(0, 0.05, (seeds, rows))
        for name, effect in shift.items()
        for budget in BUDGETS
    }
    return Measured(losses, rows_alone + 1.0)


def standings(held_out, seed=0, general=None):
    return compare(held_out, general, resamples=400, confidence=0.95, generator=np.random.default_rng(seed))


def slow_mean(runs):
    return sum(sum(run) / len(run) for run in runs) / len(runs)


def test_means_differences_and_gains_are_those_of_the_slow_loop():
    held_out = make_losses()
    for cell, found in standings(held_out).items():
        mean = slow_mean(held_out.losses[cell])
        other = slow_mean(held_out.losses[Cell("random", "none", cell.budget)])
        assert found.loss == pytest.approx(mean)
        assert found.minus_random == pytest.approx(mean - other)
        assert found.plasticity == pytest.approx(slow_mean([held_out.base]) - mean)
        assert found.low < found.loss < found.high
        assert found.minus_random_low <= found.minus_random <= found.minus_random_high
        assert found.plasticity_low < found.plasticity < found.plasticity_high
        assert (found.stability, found.stability_low, found.stability_high) == (None, None, None)


def test_what_is_lost_on_general_rows_is_below_zero_and_the_rest_is_as_without_them():
    held_out = make_losses()
    lost = Measured({cell: runs[:, :20] + 2.0 for cell, runs in held_out.losses.items()}, held_out.base[:20])
    alone, found = standings(held_out), standings(held_out, general=lost)
    for cell, one in found.items():
        assert one.stability == pytest.approx(slow_mean([lost.base]) - slow_mean(lost.losses[cell]))
        assert one.stability_low < one.stability < one.stability_high < 0
        assert (one.loss, one.minus_random_low) == (alone[cell].loss, alone[cell].minus_random_low)


@pytest.mark.parametrize(
    ("cell", "chance"),
    [
        (("delift", "none"), ("random", "none")),
        (("delift", "dualsft"), ("random", "random")),
        (("all", "dualsft"), ("all", "random")),
        (("all", "none"), ("all", "none")),
    ],
)
def test_rows_and_parameters_that_are_chosen_stand_beside_those_that_chance_chooses(cell, chance):
    assert Cell(*cell, "0.1").chance == Cell(*chance, "0.1")


def test_the_share_of_right_answers_is_that_of_the_slow_loop():
    held_out = make_losses()
    right = {cell: (runs < 3).astype(float) for cell, runs in held_out.losses.items()}
    generator = np.random.default_rng(0)
    found = compare(held_out, correct=right, resamples=400, confidence=0.95, generator=generator)
    for cell, one in found.items():
        assert one.correct == pytest.approx(slow_mean(right[cell]))
        assert one.correct_low < one.correct < one.correct_high
    assert found[Cell("good", "none", "0.1")].correct_low > found[Cell("random", "none", "0.1")].correct


def test_a_paired_difference_is_known_better_than_the_losses_themselves():
    found = standings(make_losses())[Cell("good", "none", "0.1")]
    assert found.minus_random_high < -0.4
    assert found.high - found.low > 5 * (found.minus_random_high - found.minus_random_low)


def test_random_rows_differ_from_themselves_by_nothing():
    found = standings(make_losses())[Cell("random", "none", "0.3")]
    assert (found.minus_random, found.minus_random_low, found.minus_random_high) == (0, 0, 0)


def test_the_same_seed_gives_the_same_bits():
    assert standings(make_losses(), seed=4) == standings(make_losses(), seed=4)
    assert standings(make_losses(), seed=4) != standings(make_losses(), seed=5)


def test_a_budget_without_random_rows_is_refused():
    whole = make_losses()
    losses = {cell: runs for cell, runs in whole.losses.items() if cell != Cell("random", "none", "0.3")}
    text = r"2 of 5 cells have no random one beside them, first \['good/none/0.3', 'equal/none/0.3'\]"
    with pytest.raises(ValueError, match=text):
        standings(Measured(losses, whole.base))


def test_a_mask_without_a_random_one_is_refused():
    with pytest.raises(ValueError, match=r"6 of 6 cells have no random one beside them, first \['random/fisher/0.1'"):
        standings(make_losses(mask="fisher"))
