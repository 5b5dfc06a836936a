"""Selectors `balanced` and `fresh`: two forms of chance beside `random`."""

from dataclasses import replace

import numpy as np
import pytest
from worlds.toy_corpus import TOPICS, row, write_rows
from worlds.toy_selection import HALF, chosen, run

from tamis.submodular.budgets import draw, resolve
from tasks.selection.selection import find_seed

BALANCED, FRESH = (replace(HALF, selector=selector, budget={"count": 6}) for selector in ("balanced", "fresh"))


def write(folder, **changes) -> list[str]:
    """Write eleven rows of the pool: eight sums, two letters, a greeting; some columns changed."""
    topics = [TOPICS[0]] * 8 + [TOPICS[1]] * 2 + [TOPICS[2]]
    rows = [row(place, "pool") | {"topic": topic} for place, topic in enumerate(topics)]
    changed = {name: values * 11 if len(values) == 1 else values for name, values in changes.items()}
    return write_rows(
        folder / "examples",
        [one | {name: values[place] for name, values in changed.items()} for place, one in enumerate(rows)],
    )


@pytest.mark.parametrize("seed", range(4))
def test_balanced_takes_as_many_rows_of_every_topic_as_there_are(tmp_path, seed):
    write(tmp_path)
    _, facts = run(tmp_path, replace(BALANCED, seed=seed))
    assert facts["topics"] == {"greetings": 1, "letters": 2, "sums": 3}


@pytest.mark.parametrize("seed", range(4))
def test_balanced_takes_as_many_rows_of_every_source_where_there_is_one_topic(tmp_path, seed):
    sources = ["a"] * 7 + ["b"] * 3 + [None]
    ids = write(tmp_path, topic=["one"], source=sources)
    subset, _ = run(tmp_path, replace(BALANCED, seed=seed))
    taken = [sources[ids.index(name)] for name in chosen(subset)]
    assert [taken.count(name) for name in ("a", "b", None)] in ([3, 2, 1], [2, 3, 1])


def test_balanced_keeps_caps_and_floors(tmp_path):
    write(tmp_path)
    _, facts = run(tmp_path, replace(BALANCED, floors={TOPICS[0]: 5}, caps={TOPICS[1]: 0}))
    assert facts["topics"] == {"greetings": 1, "letters": 0, "sums": 5}


@pytest.mark.parametrize("settings", [BALANCED, FRESH], ids=["balanced", "fresh"])
def test_a_seed_fixes_what_is_drawn_and_is_recorded(tmp_path, settings):
    write(tmp_path)
    one, again, other = (chosen(run(tmp_path, replace(settings, seed=seed))[0]) for seed in (0, 0, 1))
    assert one == again != other
    assert find_seed(settings) == 0


def test_fresh_records_the_rows_of_the_first_epoch_which_are_those_of_random(tmp_path):
    ids = write(tmp_path)
    subset, facts = run(tmp_path, replace(FRESH, seed=2))
    one = resolve({"count": 6}, topics=["a"] * 11, response_tokens=np.ones(11, np.int64))
    assert chosen(subset) == [ids[place] for place in draw(one, seed=2)]
    assert chosen(subset) == chosen(run(tmp_path, replace(FRESH, selector="random", seed=2))[0])
    assert facts["selector"] == "fresh"
