"""`studies/pools.py`: what is wrong in a pool is what its labels say; a seed draws anew all but what is held out."""

from importlib import import_module

import numpy as np
import pytest

pools = import_module("studies.pools")


def make_rows(count=60, topics=6):
    return [
        {"prompt": f"question {place}", "response": f"answer number {place}", "topic": f"t{place % topics}"}
        for place in range(count)
    ]


def draw(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("within", "same"), [(True, {True}), (False, {False}), (None, {True, False})])
def test_exchanged_rows_have_the_response_of_another_one_across_or_within_topics(within, same):
    rows = make_rows()
    found = pools.exchange(rows, 24, draw(), within=within)
    owner = {row["response"]: row for row in rows}
    wrong = [row for row in found if row.get("planted") == "exchanged"]
    assert len(wrong) == 24
    assert {owner[row["response"]]["topic"] == row["topic"] for row in wrong} == same
    assert all(owner[row["response"]]["prompt"] != row["prompt"] for row in wrong)
    assert sorted(row["response"] for row in found) == sorted(row["response"] for row in rows)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]


def test_rows_that_are_not_labelled_are_as_they_were_and_none_of_the_given_ones_is_changed():
    rows = make_rows()
    found = pools.exchange(rows, 12, draw(), within=True) + pools.cut_off(rows, 12, draw())
    assert [row for row in found if "planted" not in row] == [
        row for row, new in zip([*rows, *rows], found, strict=True) if "planted" not in new
    ]
    assert rows == make_rows()


def test_within_topics_of_one_row_nothing_can_be_exchanged():
    with pytest.raises(ValueError, match=r"the responses of 4 of 8 rows cannot be exchanged; give more rows a topic"):
        pools.exchange(make_rows(8, topics=8), 4, draw(), within=True)


def test_responses_that_are_cut_off_are_the_beginning_of_what_they_were():
    rows = make_rows()
    found = pools.cut_off(rows, 12, draw())
    cut = [(row, new) for row, new in zip(rows, found, strict=True) if new.get("planted") == "cut"]
    assert len(cut) == 12
    for row, new in cut:
        assert row["response"].startswith(new["response"])
        assert 0 < len(new["response"]) < len(row["response"])


def test_held_out_rows_are_those_of_the_name_whatever_the_seed_and_stand_in_no_pool():
    rows = make_rows(400)
    one, other = (pools.make_clean(rows, "clean-toys", draw(seed)) for seed in (0, 1))
    assert one.held_out == other.held_out != pools.make_clean(rows, "clean-others", draw(0)).held_out
    assert one.pool != other.pool
    assert one == pools.make_clean(rows, "clean-toys", draw(0))
    for pool in (one, other):
        assert not {row["prompt"] for row in pool.pool} & {row["prompt"] for row in pool.held_out}


def test_one_row_in_twenty_of_a_rare_target_is_of_it_and_those_given_stand_apart():
    common, rare = make_rows(700), [{**row, "prompt": f"rare {row['prompt']}"} for row in make_rows(200)]
    found = pools.make_rare(common, rare, "rare-toys", draw(), 40)
    sets = [{row["prompt"] for row in rows if row["prompt"].startswith("rare")} for rows in (found.pool, found.target)]
    assert (len(found.pool), *map(len, sets)) == (640, 32, 32)
    assert not sets[0] & sets[1]
    assert not {row["prompt"] for row in found.held_out} & (sets[0] | sets[1])


def test_a_pool_that_is_not_there_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setattr(pools, "list_tldr", lambda *_: [])
    with pytest.raises(ValueError, match=r"there is no pool 'dirty'; known: clean-dialogues, clean-svamp"):
        pools.build("dirty", None, 0)


def test_a_pool_is_written_by_file_and_the_version_before_beside_it(tmp_path):
    rows = make_rows(4)
    pools.write(pools.Pool(rows, rows[:1], before=rows[:2]), tmp_path / "p" / "seed=0")
    found = {str(path.relative_to(tmp_path)): len(path.read_text().splitlines()) for path in tmp_path.rglob("*.jsonl")}
    home = "p/seed=0"
    assert found == {
        f"{home}/now/pool.jsonl": 4,
        f"{home}/now/held_out.jsonl": 1,
        f"{home}/before/pool.jsonl": 2,
        f"{home}/before/held_out.jsonl": 1,
    }
