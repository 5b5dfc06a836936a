import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.small_models import FAMILIES, WORDS, small_model
from worlds.token_rows import list_pairs, make_rows
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template
from tamis.language.encoding import join_rows
from tamis.scores.references import (
    ask_ica,
    draw_demos,
    mean_states,
    order_round_robin,
    score_ica,
    score_places,
    score_tov,
)

ROWS = [make_exchange("one plus one", "two"), make_exchange("say hi", "hi!", system="Be kind.")]
DEMOS = [make_exchange("a", "b"), make_exchange("c", "d")]


def draw_tokens(rows: int, seed: int = 0):
    """Return rows of one exchange, of several lengths."""
    random = np.random.default_rng(seed)
    parts = [[random.integers(0, WORDS, random.integers(1, 9)).tolist() for _ in range(rows)] for _ in range(2)]
    return join_rows(make_rows(*parts), [0] * rows)


def slow_states(model, rows) -> np.ndarray:
    """Means by a whole pass per row and a loop over its tokens."""
    found = []
    for place in range(len(rows)):
        tokens = rows.row(place)[-1].tokens
        with torch.no_grad():
            states = model(input_ids=torch.from_numpy(tokens).long()[None], output_hidden_states=True).hidden_states
        total, weights = torch.zeros(states[-1].shape[2], dtype=torch.float64), 0
        for position, state in enumerate(states[-1][0].double(), start=1):
            total += position * state
            weights += position
        found.append((total / weights).numpy() / np.linalg.norm(total / weights))
    return np.array(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_weighted_means_of_whole_passes(family):
    model, rows = small_model(family), draw_tokens(7)
    assert mean_states(model, rows, 30) == pytest.approx(slow_states(model, rows), abs=1e-6)


def test_states_have_length_1_and_do_not_depend_on_packing():
    model, rows = small_model("llama"), draw_tokens(6)
    found = mean_states(model, rows, 10)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6))
    assert mean_states(model, rows, 1000) == pytest.approx(found, abs=1e-6)


def test_states_are_the_same_bits_again():
    model, rows = small_model("llama"), draw_tokens(6)
    assert np.array_equal(mean_states(model, rows, 10), mean_states(model, rows, 10))


def test_a_row_of_several_sequences_has_the_states_of_its_last():
    model, rows = small_model("llama"), draw_tokens(2)
    pieces = [rows.row(0)[0], rows.row(1)[0]]
    assert np.array_equal(mean_states(model, join_rows([pieces], [0]), 99), mean_states(model, rows.pick([1]), 99))


def take_turns(similar: np.ndarray) -> list[int]:
    """Return rows as queries name them, turn by turn."""
    queues = [sorted(range(similar.shape[1]), key=lambda row: -each[row]) for each in similar]
    taken: list[int] = []
    while any(queues):
        for queue in queues:
            named = queue.pop(0)
            if named not in taken:
                taken.append(named)
    return taken


@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 99))
@settings(deadline=None)
def test_the_order_is_that_of_queries_taking_turns(queries, rows, seed):
    similar = np.random.default_rng(seed).integers(0, 5, (queries, rows)) / 4  # with ties
    assert order_round_robin(similar).tolist() == take_turns(similar)


def test_the_first_rows_are_the_best_of_every_query_whatever_its_scale():
    similar = np.random.default_rng(0).random((4, 50))
    order = order_round_robin(similar)
    assert set(similar.argmax(axis=1).tolist()) == set(order[: len(set(similar.argmax(axis=1).tolist()))].tolist())
    assert np.array_equal(order_round_robin(similar * [[1], [9], [0.1], [100]]), order)


def test_one_query_sorts_the_rows_and_a_repeated_one_changes_nothing():
    similar = np.random.default_rng(1).random((2, 30))
    assert order_round_robin(similar[:1]).tolist() == np.argsort(-similar[0]).tolist()
    assert np.array_equal(order_round_robin(similar[[0, 1, 1]]), order_round_robin(similar))


def test_an_order_without_queries_or_of_broken_similarities_is_refused():
    with pytest.raises(ValueError, match=r"0 queries with 0 similarities .* give at least 1 query"):
        order_round_robin(np.empty((0, 3)))
    with pytest.raises(ValueError, match=r"1 queries with 1 similarities that are not finite"):
        order_round_robin(np.array([[0.5, np.nan]]))


def test_places_are_scores_that_sort_as_the_order_does_and_are_all_different():
    order = np.random.default_rng(2).permutation(9)
    scores = score_places(order)
    assert np.argsort(-scores).tolist() == order.tolist()
    assert [scores[order[0]], scores[order[-1]]] == pytest.approx([1, 1 / 9])
    assert len(set(scores.tolist())) == 9


def test_demos_are_the_same_for_a_seed_and_others_for_another():
    drawn = [draw_demos(40, 3, seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(each)) == 3 for each in drawn)
    assert sorted(draw_demos(2, 5, 0).tolist()) == [0, 1]


def texts(tokenizer, asked) -> list[str]:
    """Every row as the text that the model reads, with | before what it is to answer."""
    return [f"{tokenizer.decode(before)}|{tokenizer.decode(answer)}" for before, answer in list_pairs(asked)]


def test_ica_asks_again_after_the_demos_as_earlier_turns():
    tokenizer = toy_tokenizer()
    turns = "<|user|>a<|end|>\n<|assistant|>b<|end|>\n<|user|>c<|end|>\n<|assistant|>d<|end|>\n"
    assert texts(tokenizer, ask_ica(Template(tokenizer), ROWS, DEMOS)) == [
        "<|user|>one plus one<|end|>\n<|assistant|>|two<|end|>",
        f"{turns}<|user|>one plus one<|end|>\n<|assistant|>|two<|end|>",
        "<|system|>Be kind.<|end|>\n<|user|>say hi<|end|>\n<|assistant|>|hi!<|end|>",
        f"<|system|>Be kind.<|end|>\n{turns}<|user|>say hi<|end|>\n<|assistant|>|hi!<|end|>",
    ]


def test_ica_shows_demos_in_the_published_wording_too():
    tokenizer = toy_tokenizer()
    plain, shown = texts(tokenizer, ask_ica(Template(tokenizer, "delift"), ROWS[:1], DEMOS))
    assert "Example" not in plain
    assert all(f"\n{demo.messages[0].content}\n{demo.messages[1].content}\n" in shown for demo in DEMOS)
    assert plain.endswith("|two<|end|>")
    assert shown.endswith("|two<|end|>")


def test_rows_with_one_head_share_the_demos_as_their_head():
    tokenizer = toy_tokenizer()
    asked = ask_ica(Template(tokenizer), [ROWS[0], ROWS[0], ROWS[1]], DEMOS)
    heads = [tokenizer.decode(head) for head, _ in asked.by_head(range(len(asked)))]
    assert [places for _, places in asked.by_head(range(len(asked)))] == [[0, 2], [1, 3], [4], [5]]
    assert heads[1].count("<|assistant|>") == 2
    assert heads[3].startswith("<|system|>Be kind.")


def test_a_conversation_of_several_exchanges_is_asked_whole_after_the_demos():
    tokenizer = toy_tokenizer()
    turns = [Message("user", "x"), Message("assistant", "1", learnt=True)]
    long = Conversation((*turns, Message("user", "y"), Message("assistant", "2", learnt=True)))
    asked = ask_ica(Template(tokenizer), [long], DEMOS)
    plain, shown = (asked.row(place)[0] for place in range(2))
    assert shown.tokens[-len(plain) :].tolist() == plain.tokens.tolist()
    assert shown.answers.sum() == plain.answers.sum() == 4


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_losses_are_those_of_the_slow_loop(seed):
    before, after = np.random.default_rng(seed).random((2, 20))
    assert score_ica(before, after).tolist() == [one - other for one, other in zip(before, after, strict=True)]
    assert score_tov(before, after).tolist() == [abs(one - other) for one, other in zip(before, after, strict=True)]


def test_moves_count_alike_in_both_directions_and_gains_do_not():
    before, after = np.random.default_rng(3).random((2, 20))
    assert score_tov(before, after).tolist() == score_tov(after, before).tolist()
    assert score_ica(before, after).tolist() == (-score_ica(after, before)).tolist()
    assert (score_tov(before, before) == 0).all()
