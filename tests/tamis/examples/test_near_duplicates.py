"""Near-duplicates: what is similar is found, nothing else is, and every row is like the one that it is named after."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.near_duplicates import PLANTED, plant_pair
from tamis.examples import near_duplicates
from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.examples.near_duplicates import (
    find_near_duplicates,
    join_dialogue,
    match_marked,
    plan_bands,
    shingle,
    split_words,
)

SAMPLE = Path(__file__).parents[3] / "data/raw/v2/tech_support.jsonl"


def name_words(generator: np.random.Generator, count: int) -> list[str]:
    """Words of which no two texts share any, but by chance in 10^12."""
    return [f"w{number}" for number in generator.integers(0, 10**12, count)]


def plant(pairs: int, seed: int = 0) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Texts in any order, and the similarity of those pairs that have any."""
    generator = np.random.default_rng(seed)
    texts, similar = [], {}
    places = iter(generator.permutation(2 * pairs * len(PLANTED)).tolist())
    placed: dict[int, str] = {}
    for jaccard, counts in PLANTED.items():
        for _ in range(pairs):
            one, other = sorted((next(places), next(places)))
            placed[one], placed[other] = plant_pair(generator, *counts)
            similar[one, other] = jaccard
    texts = [placed[place] for place in range(len(placed))]
    return texts, similar


def vary(generator: np.random.Generator, count: int) -> list[str]:
    """Texts of few words, many of which are another with a word or two exchanged, left out or twice."""
    texts: list[list[str]] = []
    for _ in range(count):
        words = [*generator.choice(list("abcdefghijklmnopqrst"), generator.integers(1, 40))]
        if texts and generator.random() < 0.8:
            words = list(texts[generator.integers(len(texts))])
            for _ in range(generator.integers(0, 3)):
                place = generator.integers(len(words))
                words[place : place + 1] = generator.choice(["x", "y"], generator.integers(0, 3))
                words = words or ["z"]
        texts.append(words)
    return [" ".join(words) for words in texts]


def compare_all(texts: list[str]) -> np.ndarray:
    words = [split_words(text) for text in texts]
    return np.array([[oracles.jaccard(one, other) for other in words] for one in words])


def listed(found) -> list[tuple[int, int]]:
    return list(map(tuple, found.pairs.tolist()))


@pytest.fixture(scope="module")
def planted():
    texts, similar = plant(300)
    return find_near_duplicates(texts, jaccard=0.8), similar


@pytest.mark.parametrize("jaccard", [0.8, 0.9])
def test_planted_pairs_at_and_above_the_threshold_are_found(planted, jaccard):
    found, similar = planted
    wanted = {pair for pair, value in similar.items() if value == jaccard}
    assert len(wanted & set(listed(found))) >= 0.95 * len(wanted)


def test_no_pair_below_the_threshold_is_returned_and_similarities_are_exact(planted):
    found, similar = planted
    assert 0.7 in similar.values()
    for pair, value in zip(listed(found), found.jaccards.tolist(), strict=True):
        assert value == similar[pair] >= 0.8


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_and_clusters_are_those_of_comparing_all_with_all(threshold, seed):
    texts = vary(np.random.default_rng(seed), 150)
    found, similar = find_near_duplicates(texts, jaccard=threshold, seed=seed), compare_all(texts)
    first = [next(place for place in range(row + 1) if place == row or similar[row, place] == 1) for row in range(150)]
    pairs = {(first[row], row) for row in range(150) if first[row] != row}
    stand = sorted(set(first))
    pairs |= {(one, other) for one, other in combinations(stand, 2) if similar[one, other] >= threshold}
    assert len(pairs) > 20
    assert set(listed(found)) <= pairs
    assert len(found.pairs) >= 0.98 * len(pairs)
    assert found.jaccards.tolist() == [similar[pair] for pair in listed(found)]
    known = np.eye(150)
    for one, other in listed(found):
        known[one, other] = known[other, one] = similar[one, other]
    leads = oracles.lead(known[np.ix_(first, first)], threshold)
    assert found.near_duplicate_of.tolist() == leads
    counts = Counter(row if leads[row] < 0 else leads[row] for row in range(150))
    assert found.cluster_sizes.tolist() == [counts[row if leads[row] < 0 else leads[row]] for row in range(150)]


@pytest.mark.parametrize("seed", range(3))
def test_marked_rows_are_matched_as_by_comparing_all_with_all(seed):
    generator = np.random.default_rng(seed)
    texts = vary(generator, 120)
    marked, similar = generator.random(120) < 0.2, compare_all(texts)
    np.fill_diagonal(similar, 0)
    slow = (similar[:, marked] >= 0.8).any(axis=1)
    assert slow.sum() > 10
    assert match_marked(find_near_duplicates(texts, jaccard=0.8), marked).tolist() == slow.tolist()


@pytest.mark.parametrize("batch", [1, 7, 150])
def test_which_rows_stand_together_in_a_batch_plays_no_part(monkeypatch, batch):
    texts = vary(np.random.default_rng(0), 150)
    once = find_near_duplicates(texts, jaccard=0.6)
    monkeypatch.setattr(near_duplicates, "BATCH", batch)
    again = find_near_duplicates(texts, jaccard=0.6)
    for name in ("near_duplicate_of", "cluster_sizes", "pairs", "jaccards"):
        assert getattr(once, name).tobytes() == getattr(again, name).tobytes()


def test_pairs_are_the_same_whatever_the_order_of_rows():
    texts, _ = plant(60)
    order = np.random.default_rng(1).permutation(len(texts))
    once = find_near_duplicates(texts, jaccard=0.8)
    again = find_near_duplicates([texts[place] for place in order], jaccard=0.8)
    assert {tuple(sorted(order[list(pair)].tolist())) for pair in listed(again)} == set(listed(once))


def test_another_seed_proposes_other_pairs_and_the_same_seed_the_same():
    texts = [plant_pair(np.random.default_rng(seed), *PLANTED[0.7])[side] for seed in range(200) for side in (0, 1)]
    _, keys = near_duplicates._sketch_rows(texts, 0.8, 0)
    assert np.array_equal(keys, near_duplicates._sketch_rows(texts, 0.8, 0)[1])
    assert not np.array_equal(keys, near_duplicates._sketch_rows(texts, 0.8, 1)[1])


def repeat_by_accident(rows: int = 1050, texts: int = 10) -> list[str]:
    """Rows of a few texts: each said with other blanks, capitals, closing signs, or a word more at its end."""
    generator = np.random.default_rng(0)
    plain = [" ".join(name_words(generator, 30)) for _ in range(texts)]
    said = []
    for row in range(rows):
        text = plain[row % texts]
        text = generator.choice([text, text.upper(), text.title(), text.replace(" ", "  ")])
        said.append(text + generator.choice(["", ".", "!", " ...", " please", " thanks", " now"]))
    return said


def test_rows_of_a_few_texts_with_small_variations_are_that_many_clusters():
    found = find_near_duplicates(repeat_by_accident(), jaccard=0.8)
    assert found.near_duplicate_of.tolist() == [-1] * 10 + [row % 10 for row in range(10, 1050)]
    assert set(found.cluster_sizes.tolist()) == {105}


def test_the_sample_data_repeat_ten_texts_by_accident():
    lines = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in lines if "planted" not in row]
    found = find_near_duplicates(
        [join_dialogue(make_exchange(row["prompt"], row["response"])) for row in rows], jaccard=0.8
    )
    assert len(lines) == 1050
    assert (found.near_duplicate_of < 0).sum() == 10
    assert found.cluster_sizes.min() == 85


def test_in_a_large_bucket_rows_are_compared_with_its_first_ones(monkeypatch):
    monkeypatch.setattr(near_duplicates, "LEADS", 2)
    same = " ".join(name_words(np.random.default_rng(0), 60))
    found = find_near_duplicates([f"{same} {row}" for row in range(80)], jaccard=0.8)
    assert found.near_duplicate_of.tolist() == [-1] + [0] * 79
    assert len(found.pairs) < 80 * 2 * plan_bands(0.8)[0]


def test_texts_of_one_script_without_blanks_are_compared_by_characters():
    one = "机器学习是人工智能的一个分支研究如何让计算机从数据中学习。"
    other = one.replace("研究", "探讨")
    found = find_near_duplicates([one, other, "今天天气很好我们去公园散步吧。"], jaccard=0.6)
    assert found.near_duplicate_of.tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("カタカナ ab", ["カ", "タ", "カ", "ナ", "ab"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("x=a[1]+=2", ["x", "=", "a", "[", "1", "]+=", "2"]),
        ("\uff26ull wiDth", ["full", "width"]),
        (" \n", []),
    ],
)
def test_words_are_cut_where_scripts_and_signs_meet(text, words):
    assert split_words(text) == words


@given(st.text(max_size=60))
def test_shingles_are_ascending_once_each_and_as_many_as_runs_of_words(text):
    words = split_words(text)
    size = 3 if len(words) >= 8 else 1
    found = shingle(text)
    assert (found[1:] > found[:-1]).all()
    assert len(found) == len({tuple(words[place : place + size]) for place in range(len(words) - size + 1)})


@pytest.mark.parametrize("texts", [[], ["", " "], ["", "a", "!"]])
def test_rows_without_a_word_are_like_none(texts):
    found = find_near_duplicates(texts, jaccard=0.8)
    assert found.near_duplicate_of.tolist() == [-1] * len(texts)
    assert found.cluster_sizes.tolist() == [1] * len(texts)
    assert found.pairs.shape == (0, 2)


def test_system_messages_are_no_part_of_the_text_and_tool_calls_are():
    calls = Message("assistant", "", learnt=True, details='{"tool_calls": []}')
    talk = Conversation((Message("system", "Be kind."), Message("user", "Hi"), calls, Message("tool", "42")))
    assert join_dialogue(talk) == 'Hi\n{"tool_calls": []}\n42'
    assert join_dialogue(make_exchange("Hi", "Hello")) == "Hi\nHello"


@pytest.mark.parametrize("jaccard", [0.1, 0.35, 0.5, 0.8, 0.95, 1.0])
def test_bands_propose_nearly_all_pairs_at_the_threshold_and_no_wider_ones_do(jaccard):
    def propose(width):
        return 1 - (1 - jaccard**width) ** (near_duplicates.MINIMA // width)

    bands, width = plan_bands(jaccard)
    assert bands * width <= near_duplicates.MINIMA
    assert propose(width) >= 0.99
    assert all(propose(more) < 0.99 for more in range(width + 1, near_duplicates.MINIMA + 1))


@pytest.mark.parametrize("jaccard", [0.0, 0.05, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_refused(jaccard):
    with pytest.raises(ValueError, match=r"jaccard is .*; give a threshold from 0.1 to 1"):
        find_near_duplicates(["a"], jaccard=jaccard)


def test_texts_that_can_be_read_once_only_are_refused():
    with pytest.raises(ValueError, match=r"the texts are read twice and this iterator gives them once; give a list"):
        find_near_duplicates((text for text in ["a", "b"]), jaccard=0.8)


class Changing:
    """Texts that are others when they are read again."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def __iter__(self):
        return iter(self.readings.pop(0))


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (["a b c", "a  b c d"], r"the text of row 1 was another when it was read again"),
        (["a b c"], r"there were 2 texts, and 1 when they were read again"),
        (["a b c", "a b c d e", "f"], r"there were 2 texts, and 3 when they were read again"),
    ],
)
def test_texts_that_change_between_the_readings_are_refused(again, said):
    with pytest.raises(ValueError, match=said):
        find_near_duplicates(Changing(["a b c", "a b c d e"], again), jaccard=0.5)
