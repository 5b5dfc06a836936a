"""Operations are counted from tokens, and the break-even is where the sums meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.evaluation.costs import (
    FORWARD,
    INPUTS,
    TRAINING,
    Cost,
    Passed,
    Size,
    count_flops,
    count_rows,
    count_steps,
    count_trainings,
    find_pool_sizes,
    sum_flops,
    tell_break_even,
)
from tamis.language.encoding import TokenSequence, join_rows, make_sequence
from tamis.language.packing import group_rows, plan_packs
from tamis.training.steps import plan_steps

COUNTS = st.integers(0, 40)
COSTS = st.builds(Cost, COUNTS, COUNTS, COUNTS, COUNTS)


@st.composite
def rows_with_heads(draw):
    """Rows of one or two sequences after one of two heads."""
    rows, heads = [], []
    for _ in range(draw(st.integers(1, 7))):
        head = draw(st.sampled_from([[], [1], [2, 3]]))
        pieces = []
        for _ in range(draw(st.integers(1, 2))):
            asked, answered = draw(st.integers(1, 4)), draw(st.integers(1, 3))
            pieces.append(make_sequence([*head, *[7] * asked], [8] * answered))
        rows.append(pieces)
        heads.append(len(head))
    return join_rows(rows, heads)


@given(rows_with_heads())
def test_rows_are_counted_as_one_pack_passes_them(rows):
    (pack,) = plan_packs(group_rows(rows), 10_000)
    counted = count_rows(rows)
    assert counted.tokens == len(pack.tokens)
    assert counted.predicted == sum(map(len, pack.predicting))


@given(rows_with_heads())
def test_rows_apart_are_counted_as_the_sum_of_their_sequences(rows):
    pieces = [piece for place in range(len(rows)) for piece in rows.row(place)]
    assert count_rows(rows, shared=False) == Passed(sum(map(len, pieces)), sum(int(p.answers.sum()) for p in pieces))


@given(rows_with_heads(), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_a_training_is_counted_step_by_step(rows, batch_rows, epochs, seed):
    steps = plan_steps(len(rows), batch_rows, epochs, seed)
    slow = [count_rows(rows.pick(step)) for step in steps]
    found = count_steps(rows, steps)
    assert found == Passed(sum(each.tokens for each in slow), sum(each.predicted for each in slow))
    assert found == count_steps(rows, plan_steps(len(rows), batch_rows, epochs, seed))


def test_what_stands_after_the_last_answer_is_not_counted():
    rows = join_rows([[TokenSequence(np.arange(4, dtype=np.int32), np.array([False, True, False, False]))]], [0])
    assert count_rows(rows) == Passed(2, 1)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_operations_are_those_of_a_loop_over_tokens(tokens, predicted, layers, head):
    size = Size(layers, head)
    for each in (FORWARD, INPUTS, TRAINING):
        slow = sum(each * layers for _ in range(tokens)) + sum(each * head for _ in range(predicted))
        assert count_flops(Passed(tokens, predicted), size, each) == slow
    both = [(Passed(tokens, predicted), FORWARD), (Passed(1), TRAINING)]
    assert sum_flops(both, size) == count_flops(both[0][0], size) + 6 * layers


@given(COSTS)
def test_the_break_even_is_the_first_number_of_trainings_that_is_no_dearer(cost):
    def pays(count: int) -> bool:
        return cost.scoring + cost.choosing + count * cost.subset <= count * cost.full

    found = count_trainings(cost)
    assert found == next((count for count in range(100) if pays(count)), None)


@given(COSTS, st.integers(1, 9), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_sizes_of_the_pool_that_pay_are_found_by_trying_them(cost, rows, power, fixed, piloted):
    def pays(size: int) -> bool:  # all of it times rows^2, in whole numbers
        grown = size**power * rows ** (2 - power)
        before = cost.scoring * grown + cost.choosing * (rows * rows if piloted else grown)
        return before + cost.subset * (rows * rows if fixed else size * rows) <= cost.full * size * rows

    found = find_pool_sizes(cost, rows, power=power, fixed=fixed, piloted=piloted)
    wanted = [size for size in range(1, 2000) if pays(size)]
    if found is None:
        assert not wanted
    else:
        least, most = found
        assert wanted == list(range(least, 2000 if most is None else most + 1))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (None, "at no size of the pool"),
        ((1, None), "at any size of the pool"),
        ((1200, None), "from 1,200 rows of the pool on"),
        ((1, 30), "up to 30 rows of the pool"),
        ((5, 30), "from 5 to 30 rows of the pool"),
    ],
)
def test_the_break_even_is_told_in_words(sizes, said):
    told = tell_break_even(Cost(1, 0, 2, 1), Cost(1, 0, 1, 2), sizes)
    assert told == f"scoring never pays (by FLOPs after 1); for one training {said}"
