import math

import numpy as np
import pytest

from tamis.scores.baselines import (
    cluster,
    order_deft_ucs,
    order_longest,
    order_scores,
    score_ifd,
    score_perplexity,
    score_selectit,
)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def draw_unit(seed: int, rows: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plant(centres: int, each: int) -> np.ndarray:
    """Tight clusters around unit vectors, the rows of a cluster one after the other."""
    vectors = np.repeat(np.eye(centres, 8), each, axis=0) + 0.05 * (draw(3, centres * each, 8) - 0.5)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7, 10])
def test_perplexity_takes_the_middle_of_the_sorted_losses_first(rows):
    loss = np.round(draw(rows, rows), 1)  # with ties
    ordered = sorted(range(rows), key=lambda row: (loss[row], row))
    order = order_scores(score_perplexity(loss)).tolist()
    for count in range(1, rows + 1):
        taken = sorted(ordered.index(row) for row in order[:count])
        assert taken == list(range(taken[0], taken[0] + count))
        assert abs(taken[0] - (rows - 1 - taken[-1])) <= 1


def test_perplexity_scores_are_distances_of_ranks_from_the_middle():
    loss = draw(0, 9)
    slow = [-abs((sum(other < one for other in loss) + 0.5) / 9 - 0.5) for one in loss]
    assert score_perplexity(loss) == pytest.approx(slow)


def test_perplexity_orders_alike_by_loss_and_by_its_exponential():
    loss = draw(1, 20)
    assert np.array_equal(score_perplexity(loss), score_perplexity(np.exp(loss)))


def test_ifd_puts_the_hardest_helped_row_first_and_unhelped_rows_last():
    conditioned, alone = 3 * draw(0, 40), 3 * draw(1, 40) + 0.01
    ratio = [float(one) / float(other) for one, other in zip(conditioned, alone, strict=True)]
    helped = sorted((row for row in range(40) if ratio[row] < 1), key=lambda row: -ratio[row])
    others = sorted((row for row in range(40) if ratio[row] >= 1), key=lambda row: ratio[row])
    assert helped
    assert others
    assert order_scores(score_ifd(conditioned, alone)).tolist() == helped + others


def test_ifd_of_1_does_not_help():
    assert score_ifd(np.array([2.0]), np.array([2.0])).tolist() == [-1.0]


def test_ifd_refuses_a_response_that_is_certain_without_its_prompt():
    with pytest.raises(ValueError, match=r"1 of 3 responses have a loss of 0 without their prompt, first places \[1\]"):
        score_ifd(np.ones(3), np.array([1.0, 0.0, 2.0]))


def rate_slowly(log_probs, alpha: float) -> list[float]:
    found = []
    for row in log_probs:
        ratings = []
        for prompt in row:
            total = sum(math.exp(one) for one in prompt)
            share = [math.exp(one) / total for one in prompt]
            base = max(range(len(share)), key=lambda place: (share[place], -place))
            ratings.append((base + 1) * sum(abs(one - share[base]) for one in share) / (len(share) - 1))
        mean = sum(ratings) / len(ratings)
        spread = math.sqrt(sum((one - mean) ** 2 for one in ratings) / len(ratings))
        found.append(mean / (1 + alpha * spread))
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.2, 3.0])
def test_selectit_is_what_loops_over_rows_prompts_and_ratings_give(alpha):
    log_probs = np.log(draw(0, 12, 4, 5)) * 3
    assert score_selectit(log_probs, alpha) == pytest.approx(rate_slowly(log_probs, alpha))


def test_selectit_asks_only_how_ratings_compare():
    log_probs = np.log(draw(1, 6, 3, 5))
    assert score_selectit(log_probs - 40) == pytest.approx(score_selectit(log_probs))


def test_selectit_is_0_where_the_model_cannot_tell_and_5_where_it_is_sure_of_the_best():
    unsure, sure = np.full((4, 5), -2.0), np.full((4, 5), -80.0)
    sure[:, 4] = 0.0
    assert score_selectit(np.stack([unsure, sure])) == pytest.approx([0, 5])


def test_selectit_prefers_ratings_that_do_not_hang_on_the_wording():
    steady, torn = np.full((2, 5), -80.0), np.full((2, 5), -80.0)
    steady[:, 2] = torn[0, 0] = torn[1, 4] = 0.0  # 3 and 3; 1 and 5
    score = score_selectit(np.stack([steady, torn]))
    assert score == pytest.approx([3, 3 / (1 + 0.2 * 2)])


def test_scores_are_ordered_largest_first_and_by_row_where_equal():
    score = np.round(draw(0, 50), 1)
    assert order_scores(score).tolist() == sorted(range(50), key=lambda row: (-score[row], row))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"2 of 3 scores are not finite, first places \[0, 2\]"):
        order_scores(np.array([np.nan, 1.0, np.inf]))


def test_longest_orders_by_response_tokens_and_by_row_where_equal():
    tokens = np.random.default_rng(0).integers(1, 9, size=50).astype(np.int32)
    assert order_longest(tokens).tolist() == sorted(range(50), key=lambda row: (-tokens[row], row))


def test_k_means_finds_planted_clusters():
    labels, _ = cluster(plant(4, 10), 4, seed=0)
    assert [len(set(labels[start : start + 10].tolist())) for start in range(0, 40, 10)] == [1] * 4
    assert len(set(labels.tolist())) == 4


def test_at_its_end_every_row_is_with_the_nearest_mean_and_every_mean_is_that_of_its_rows():
    vectors = draw_unit(0, 60, 5)
    labels, centroids = cluster(vectors, 6, seed=1)
    for row, vector in enumerate(vectors):
        distance = [sum((float(a) - float(b)) ** 2 for a, b in zip(vector, one, strict=True)) for one in centroids]
        assert distance[labels[row]] == pytest.approx(min(distance), abs=1e-6)
    for place, centroid in enumerate(centroids):
        members = [vector for row, vector in enumerate(vectors) if labels[row] == place]
        assert centroid == pytest.approx(sum(vector.astype(float) for vector in members) / len(members), abs=1e-6)


def test_k_means_does_not_depend_on_how_rows_are_cut_into_blocks(monkeypatch):
    vectors = draw_unit(2, 50, 4)
    whole = cluster(vectors, 5, seed=0)[0]
    monkeypatch.setattr("tamis.scores.baselines.ROWS", 7)
    assert np.array_equal(cluster(vectors, 5, seed=0)[0], whole)


def test_there_are_no_more_clusters_than_distinct_vectors():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    assert len(cluster(vectors, 4, seed=0)[1]) == 2


@pytest.mark.parametrize(("rows", "clusters"), [(3, 0), (0, 2)])
def test_clusters_need_rows(rows, clusters):
    with pytest.raises(ValueError, match=f"{rows} vectors, 0 of them not finite.* cannot be put in {clusters} cluster"):
        cluster(np.ones((rows, 2), np.float32), clusters, seed=0)


def test_a_vector_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"2 vectors, 1 of them not finite \(first places \[1\]\)"):
        cluster(np.float32([[1, 0], [np.nan, 0]]), 1, seed=0)


def alternate_slowly(members: list[int], easy: float) -> list[int]:
    """Take rows sorted by nearness from the front until the easy share is met, else from the back."""
    left, found, near = list(members), [], 0
    while left:
        if near < math.ceil(easy * (len(found) + 1)):
            near += 1
            found.append(left.pop(0))
        else:
            found.append(left.pop())
    return found


@pytest.mark.parametrize("easy", [0.0, 0.3, 0.5, 1.0])
def test_deft_ucs_takes_easy_and_hard_rows_of_each_cluster_in_turn(easy):
    vectors = draw_unit(0, 37, 4)
    labels, centroids = cluster(vectors, 5, seed=3)
    queues = []
    for place, centroid in enumerate(centroids):
        members = [row for row in range(37) if labels[row] == place]
        members.sort(key=lambda row: (-float(vectors[row] @ centroid), row))
        queues.append(alternate_slowly(members, easy))
    queues.sort(key=lambda queue: (-len(queue), min(queue)))
    slow = [queue[turn] for turn in range(37) for queue in queues if turn < len(queue)]
    assert order_deft_ucs(vectors, 5, 3, easy=easy).tolist() == slow


def test_every_prefix_of_deft_ucs_is_spread_evenly_over_clusters():
    order = order_deft_ucs(plant(4, 10), 4, seed=0)
    assert sorted(order.tolist()) == list(range(40))
    for count in range(1, 41):
        taken = np.bincount(order[:count] // 10, minlength=4)
        assert taken.max() - taken.min() <= 1


def test_deft_ucs_is_the_same_for_the_same_seed():
    vectors = draw_unit(1, 80, 6)
    assert np.array_equal(order_deft_ucs(vectors, None, 5), order_deft_ucs(vectors, None, 5))
    assert not np.array_equal(order_deft_ucs(vectors, None, 5), order_deft_ucs(vectors, None, 6))


def test_deft_ucs_makes_as_many_clusters_as_the_rule_of_thumb_says_where_not_told():
    vectors = draw_unit(4, 50, 6)
    assert np.array_equal(order_deft_ucs(vectors, None, 0), order_deft_ucs(vectors, 5, 0))


def test_a_share_of_easy_rows_beyond_1_is_refused():
    with pytest.raises(ValueError, match=r"the share of easy rows is 1\.5; it must be between 0 and 1"):
        order_deft_ucs(draw_unit(0, 4, 2), 1, 0, easy=1.5)
