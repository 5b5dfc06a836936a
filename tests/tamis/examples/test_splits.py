"""Sides, use and changes of rows depend on text and seed alone."""

import hashlib
import unicodedata
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import largest_remainders

from tamis.examples.conversations import identify, make_exchange, split_key
from tamis.examples.splits import (
    Rows,
    SplitError,
    allocate,
    assign_sides,
    find_asked_elsewhere,
    is_held_out,
    link_duplicates,
    mark_used,
    number_repetitions,
    refuse_shared,
    refuse_taught,
    sample,
    set_apart,
    set_validation_apart,
    share_held_out,
    shorten,
    validates,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPACES = st.text(" \t\n\u00a0\u2003", min_size=1, max_size=3)
SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 50), min_size=1)


def key_of(prompt: str) -> str:
    return split_key(make_exchange(prompt, "an answer"))


@given(TEXT, SPACES)
def test_prompts_that_only_look_different_fall_on_one_side(prompt, space):
    spaced = space + space.join(prompt.split(" ")) + space
    for other in (spaced, unicodedata.normalize("NFKD", prompt)):
        assert key_of(other) == key_of(prompt)


@given(TEXT, st.integers(0, 9), st.integers(1, 7))
def test_the_split_is_the_documented_rule(key, seed, held_out_every):
    whole = int(hashlib.sha256((str(seed) + key).encode()).hexdigest(), 16)
    assert is_held_out(key, seed=seed, held_out_every=held_out_every) == (whole % held_out_every == 0)


@given(st.text(max_size=150), st.text(max_size=150))
def test_shortened_keys_are_equal_where_the_keys_are(one, other):
    assert (shorten(one) == shorten(other)) == (one == other)
    assert len(shorten(one)) <= 100
    assert shorten(one) == one or len(one) > 100


def test_a_shortened_key_begins_as_the_key_does():
    assert shorten("what is " * 20).startswith(("what is " * 20)[:60])


def test_about_one_prompt_in_five_is_held_out():
    held_out = sum(is_held_out(f"prompt {k}", seed=0, held_out_every=5) for k in range(5000))
    assert abs(held_out - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5


def test_a_seed_gives_another_split():
    splits = [[is_held_out(f"prompt {k}", seed=seed, held_out_every=2) for k in range(64)] for seed in (0, 1)]
    assert splits[0] != splits[1]


@given(TEXT, st.integers(0, 9), st.integers(1, 7))
def test_validation_rows_are_drawn_by_the_documented_rule(key, seed, every):
    digest = hashlib.sha256(f"validation{seed}{key}".encode()).hexdigest()
    assert validates(key, seed=seed, validation_every=every) == (int(digest, 16) % every == 0)
    assert not validates(key, seed=seed, validation_every=None)


def test_what_validates_does_not_depend_on_what_is_held_out():
    keys = [f"question {k}" for k in range(3000)]
    held_out = [is_held_out(key, seed=0, held_out_every=5) for key in keys]
    drawn = [validates(key, seed=0, validation_every=5) for key in keys]
    both = sum(one and other for one, other in zip(held_out, drawn, strict=True))
    assert both == pytest.approx(3000 / 25, abs=3 * (3000 / 25) ** 0.5)
    assert sum(drawn) == pytest.approx(600, abs=70)


def test_drawing_one_prompt_in_none_is_refused():
    with pytest.raises(ValueError, match="validation_every is 0; one prompt in so many validates, so give 1 or more"):
        validates("hi", seed=0, validation_every=0)


SIDES = st.sampled_from(["pool", "pool", "pool", "held_out", "target", "general"])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), SIDES)), st.sets(st.sampled_from("abcdef")), st.data())
def test_a_prompt_validates_as_a_whole_or_not_at_all(rows, drawn, data):
    keys, sides = [key for key, _ in rows], [side for _, side in rows]
    barred, before = (data.draw(st.sets(st.sampled_from("abcdef"))) for _ in range(2))
    found = set_validation_apart(keys, sides, [key in drawn for key in keys], barred=barred, before=before)
    for key, side, now in zip(keys, sides, found, strict=True):
        whole = all(other == "pool" for same, other in rows if same == key)
        moves = whole and key not in barred and (key in drawn or key in before)
        assert now == ("validation" if moves else side)


def test_holding_out_one_in_none_is_refused():
    with pytest.raises(ValueError, match="held_out_every is 0; one prompt in so many is held out, so give 1 or more"):
        is_held_out("a", seed=0, held_out_every=0)


@given(st.lists(st.sampled_from("abcd")))
def test_duplicates_point_to_the_first(ids):
    assert link_duplicates(ids) == [None if ids.index(each) == k else ids.index(each) for k, each in enumerate(ids)]


@given(SIZES, st.integers(0, 200))
def test_rows_are_divided_by_largest_remainders(sizes, rows):
    given_rows = allocate(sizes, rows)
    assert sum(given_rows.values()) == min(rows, sum(sizes.values()))
    assert all(0 <= given_rows[topic] <= size for topic, size in sizes.items())
    if rows < sum(sizes.values()):
        assert given_rows == largest_remainders(sizes, rows)


def test_a_negative_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="-1 rows cannot be sampled"):
        allocate({"a": 1}, -1)


@given(SIZES, st.integers(0, 60), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_sample_has_each_topics_share_whatever_the_order(sizes, rows, seed, shuffle):
    topics = {f"{topic}{k}": topic for topic, size in sizes.items() for k in range(size)}
    chosen = sample(topics, rows, seed)
    assert {topic: sum(topics[each] == topic for each in chosen) for topic in sizes} == allocate(sizes, rows)
    mixed = list(topics)
    shuffle.shuffle(mixed)
    assert sample({each: topics[each] for each in mixed}, rows, seed) == chosen


@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 3))
def test_a_topic_keeps_its_rows_when_the_sample_grows(size, rows, seed):
    assume(rows < size)
    topics = {f"{k}": "a" for k in range(size)}
    assert sample(topics, rows, seed) < sample(topics, rows + 1, seed)


def test_another_seed_samples_other_rows():
    topics = {f"{k}": "a" for k in range(100)}
    assert sample(topics, 10, seed=0) == sample(topics, 10, seed=0)
    assert sample(topics, 10, seed=0) != sample(topics, 10, seed=1)


def test_no_number_samples_everything():
    assert sample({"a": "x", "b": "y"}, None, seed=0) == {"a", "b"}


ROWS = st.lists(st.tuples(st.sampled_from("pqrstuvw"), st.sampled_from("yn")), max_size=30)


def id_of(pair):
    return identify(make_exchange(*pair))


def rows_of(pairs, seed=0, changes=None):
    """Return rows of prompt and response, each prompt a topic of its own, half of the prompts held out."""
    prompts = [prompt for prompt, _ in pairs]
    ids = [id_of(pair) for pair in pairs]
    drawn = [is_held_out(prompt, seed=seed, held_out_every=2) for prompt in prompts]
    sides = assign_sides(prompts, [None] * len(pairs), drawn)
    return Rows(ids, link_duplicates(ids), sides, prompts, changes or ["new"] * len(pairs))


def use(rows, **changes):
    """Return why rows are not used."""
    asked = {"ground_set": "new", "deduplicate": True, "seed": 0, "pool_rows": None, "held_out_rows": None}
    return mark_used(rows, **asked | changes)


@given(ROWS, st.integers(0, 5), st.integers(0, 3))
def test_no_prompt_is_on_both_sides_and_each_id_is_used_once(pairs, seed, pool_rows):
    rows = rows_of(pairs, seed)
    because = use(rows, seed=seed, pool_rows=pool_rows)
    assert all(
        len({side for (prompt, _), side in zip(pairs, rows.sides, strict=True) if prompt == one}) == 1
        for one, _ in pairs
    )
    used = [each for each, why in zip(rows.ids, because, strict=True) if why is None]
    assert len(used) == len(set(used))
    pool = {each for each, side in zip(rows.ids, rows.sides, strict=True) if side == "pool"}
    assert len(pool & set(used)) == min(pool_rows, len(pool))
    assert set(rows.ids) - pool <= set(used)


@given(ROWS, st.integers(0, 5))
def test_more_rows_change_nothing_for_those_there_were(pairs, seed):
    few, more = rows_of(pairs, seed), rows_of([*pairs, ("z", "n")], seed)
    assert (more.ids[:-1], more.sides[:-1], more.first[:-1]) == (few.ids, few.sides, few.first)


def test_repetitions_may_be_left_in_use_under_ids_of_their_own():
    rows = Rows(["1", "2", "1"], [None, None, 0], ["pool"] * 3, ["a"] * 3, ["new"] * 3)
    assert use(rows) == [None, None, "duplicate"]
    assert use(rows, deduplicate=False) == [None] * 3
    assert number_repetitions(rows.ids) == ["1", "2", "1-1"]


def test_repetitions_outside_the_pool_are_never_used():
    rows = Rows(["1", "1", "2", "2"], [None, 0, None, 2], ["held_out"] * 2 + ["validation"] * 2, ["a"] * 4, ["new"] * 4)
    assert use(rows, deduplicate=False) == [None, "duplicate"] * 2


def test_a_sample_of_a_pool_with_repetitions_is_of_rows_and_not_of_texts():
    rows = Rows(["1"] * 30 + ["2"], [None, *[0] * 29, None], ["pool"] * 31, ["a"] * 31, ["new"] * 31)
    found = use(rows, deduplicate=False, pool_rows=10)
    assert found.count(None) == 10
    assert found == use(rows, deduplicate=False, pool_rows=10)


def test_kept_rows_of_the_pool_are_used_with_the_whole_ground_set_only():
    rows = Rows(["1", "2", "3"], [None] * 3, ["pool", "pool", "held_out"], ["a"] * 3, ["kept", "edited", "kept"])
    assert use(rows) == ["kept", None, None]
    assert use(rows, ground_set="all") == [None] * 3


def test_a_sample_is_of_what_may_be_chosen():
    rows = Rows([f"{k}" for k in range(8)], [None] * 8, ["pool"] * 8, ["a"] * 8, ["kept"] * 5 + ["new"] * 3)
    assert Counter(use(rows, pool_rows=2)) == {"kept": 5, None: 2, "not sampled": 1}


def test_an_unknown_ground_set_is_refused():
    with pytest.raises(SplitError, match=r"examples.ground_set is 'old'; it must be one of new, all"):
        use(rows_of([("p", "y")]), ground_set="old")


def test_the_target_task_is_set_apart_from_the_pool_by_hash_with_its_repetitions():
    ids = [*map(str, range(6)), "0"]
    rows = Rows(
        ids, link_duplicates(ids), ["pool"] * 5 + ["held_out", "pool"], ["a"] * 4 + ["b", "a", "a"], ["new"] * 7
    )
    sides = set_apart(rows, "a", 2, seed=3)
    smallest = sorted("0123", key=lambda each: hashlib.sha256(f"3{each}".encode()).digest())[:2]
    assert {each for each, side in zip(ids, sides, strict=True) if side == "target"} == set(smallest)
    assert sides[4:6] == ["pool", "held_out"]
    assert set_apart(rows, "a", None, seed=3).count("target") == 5


@pytest.mark.parametrize(("topic", "count"), [("a", 4), ("c", None)])
def test_a_target_task_without_enough_rows_is_refused(topic, count):
    rows = Rows(list("123"), [None] * 3, ["pool"] * 3, ["a", "a", "b"], ["new"] * 3)
    text = f"asks for {count or 'all'} rows of topic '{topic}' and the pool has . distinct .* its topics are a, b"
    with pytest.raises(SplitError, match=text):
        set_apart(rows, topic, count, seed=0)


def test_a_target_task_is_of_texts_and_of_no_row_that_asks_what_is_held_out():
    rows = Rows(["1", "2", "3", "4"], [None, 0, None, None], ["pool"] * 4, ["a"] * 4, ["new"] * 4)
    assert set_apart(rows, "a", 2, seed=0, barred=[False, False, True, False]) == ["target", "target", "pool", "target"]
    with pytest.raises(SplitError, match="asks for 3 rows of topic 'a' and the pool has 2 distinct ones"):
        set_apart(rows, "a", 3, seed=0, barred=[False, False, True, False])


def test_a_target_row_with_the_prompt_of_a_held_out_row_is_refused():
    keys = ["what is history?", "what is history?", "hi"]
    assert assign_sides(keys[:1], ["target"], [True]) == ["target"]
    with pytest.raises(SplitError, match=r"1 of 1 target rows have the prompt of a held-out row, first rows \[0\]"):
        assign_sides(keys, ["target", None, None], [True, True, False])
    with pytest.raises(SplitError, match=r"1 of 1 target rows have the prompt of a held-out row, first rows \[1\]"):
        assign_sides(["bye", "hi"], [None, "target"], [False, False], measured=["hi"])


def test_rows_of_the_pool_that_are_measured_on_elsewhere_are_not_used():
    keys, sides = ["a", "a", "b", "c", "a"], ["held_out", "pool", "pool", "pool", "target"]
    barred = find_asked_elsewhere(keys, sides, ["c"])
    assert barred == [False, True, False, True, False]
    rows = Rows(list("12345"), [None, 0, None, None, None], sides, ["t"] * 5, ["new", "new", "new", "kept", "new"])
    reasons = ["held out" if each else None for each in barred]
    assert use(rows, barred=reasons) == [None, "held out", None, "held out", None]


def test_a_held_out_row_that_an_earlier_version_chose_is_refused():
    text = r"1 of 2 held-out rows have the prompt of a row that an earlier version chose, first rows \[2\] \('bye'\)"
    with pytest.raises(SplitError, match=text):
        refuse_taught(["hi", "bye", "bye"], ["held_out", "pool", "held_out"], ["bye"])
    refuse_taught(["hi", "bye"], ["held_out", "pool"], ["bye"])


@pytest.mark.parametrize("side", ["pool", "target", "validation", "held_out"])
def test_a_general_row_with_the_prompt_of_another_row_is_refused(side):
    keys, sides = ["hi", "bye", "bye", "hi"], ["general", side, "general", "general"]
    refuse_shared(["hi", "bye", "hi"], ["general", side, "general"])
    text = rf"1 of 3 general rows have the prompt of another row \(1 of the {side}\), first rows \[2\] \('bye'\)"
    with pytest.raises(SplitError, match=text):
        refuse_shared(keys, sides)


def test_a_general_row_with_a_prompt_that_an_earlier_version_chose_is_refused():
    text = r"2 of 2 general rows .* \(1 of the earlier subset, 1 of the pool\), first rows \[1, 2\]"
    with pytest.raises(SplitError, match=text):
        refuse_shared(["hi", "bye", "hi"], ["pool", "general", "general"], taught=["bye"])


def test_general_rows_are_all_used_but_repetitions():
    rows = Rows(["1", "2", "1"], [None, None, 0], ["general"] * 3, ["a"] * 3, ["kept"] * 3)
    assert use(rows, pool_rows=0, held_out_rows=0) == [None, None, "duplicate"]


def test_shares_are_per_topic():
    assert share_held_out([("b", True), ("a", False), ("b", False), ("b", False)]) == {"a": 0.0, "b": 1 / 3}
