"""What a version changes against the one before, told from the ids and questions of both."""

from hypothesis import given
from hypothesis import strategies as st

from tamis.examples.changes import Before, find_withdrawn, label_changes, share_earlier, tell_earlier
from tamis.examples.conversations import identify, make_exchange
from tamis.examples.splits import link_duplicates

ROWS = st.lists(st.tuples(st.sampled_from("pqrstuvw"), st.sampled_from("yn")), max_size=30)
VERSION = st.lists(st.tuples(st.sampled_from("pqrstu"), st.sampled_from("yno")), max_size=12)


def id_of(pair):
    return identify(make_exchange(*pair))


@given(VERSION, VERSION)
def test_every_row_of_two_versions_is_kept_edited_new_or_withdrawn_as_the_slow_rule_says(old, new):
    before = Before([id_of(pair) for pair in old], [prompt for prompt, _ in old], [False] * len(old), [])
    ids, questions = [id_of(pair) for pair in new], [prompt for prompt, _ in new]
    slow = [
        "kept" if pair in old else "edited" if any(pair[0] == prompt for prompt, _ in old) else "new" for pair in new
    ]
    assert label_changes(ids, questions, before) == slow
    gone = find_withdrawn(ids, questions, before)
    assert [place for place, _ in gone] == [place for place, pair in enumerate(old) if pair not in new]
    for place, instead in gone:
        same = [id_of(pair) for pair in new if pair[0] == old[place][0] and pair not in old]
        assert instead == (same[0] if same else None)


def test_a_version_that_repeats_the_one_before_keeps_everything():
    before = Before(["1", "2"], ["a", "b"], [True, True], [False, True])
    assert label_changes(before.ids, before.questions, before) == ["kept", "kept"]
    assert find_withdrawn(before.ids, before.questions, before) == []
    assert tell_earlier(before.ids, before) == ["offered", "learnt"]


@given(ROWS)
def test_the_first_row_of_a_text_is_told_what_any_of_its_repetitions_is(pairs):
    first = link_duplicates([prompt for prompt, _ in pairs])
    told = {"y": "learnt", "n": None}
    shared = share_earlier(first, [told[answer] for _, answer in pairs])
    for place, (prompt, answer) in enumerate(pairs):
        group = [told[other] for same, other in pairs if same == prompt]
        assert shared[place] == (("learnt" if "learnt" in group else None) if first[place] is None else told[answer])


def test_an_offered_repetition_makes_no_learnt_row_less():
    assert share_earlier([None, 0, None, 2], ["learnt", "offered", None, "offered"]) == [
        "learnt",
        "offered",
        "offered",
        "offered",
    ]
