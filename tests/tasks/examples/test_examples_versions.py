"""A version against the one before it, the target task, and repetitions left in use."""

from functools import partial

import pytest
from worlds.raw_rows import BASE, CHATS, ROWS, dump, read_metrics, write_toy
from worlds.toy_corpus import write_subset

from data.base import TABLES
from tamis.examples.splits import SplitError, is_held_out
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.examples import division
from tasks.examples.files import ExamplesError

POOL = [row for row in ROWS if not is_held_out(row["prompt"], seed=0, held_out_every=3)]
REST = [row for row in ROWS if row not in POOL[:2]]  # without those that `follow` chooses


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from a text or rows, with the toy model; returns the table."""
    return partial(write_toy, tmp_path, toy)


@pytest.fixture
def follow(make, tmp_path):
    """Write a first version in which rows were chosen, then one that continues from it; returns the second's rows."""

    def write(first, second, chosen=2, **changes):
        table = make(first, out=tmp_path / "one", deduplicate=changes.get("deduplicate", True))
        pool = [row["id"] for row in table.to_pylist() if row["used"] and row["split"] == "pool"]
        write_subset(tmp_path / "subset", pool, chosen)
        before = {"previous_examples": tmp_path / "one", "previous_subset": tmp_path / "subset"}
        return make(second, **before, version="v2", **changes).to_pylist()

    return write


def edit(row):
    return row | {"response": row["response"] + "!"}


def test_rows_are_kept_edited_or_new_and_those_gone_are_listed(follow, tmp_path):
    fresh = {"prompt": "what is one?", "response": "it is 1"}
    rows = follow(ROWS, [edit(POOL[0]), POOL[2], *ROWS[12:], fresh], ground_set="all")
    told = {row["prompt"]: (row["change"], row["earlier"]) for row in rows}
    assert told[POOL[0]["prompt"]] == ("edited", None)
    assert told[POOL[2]["prompt"]] == ("kept", "offered")
    assert told["what is one?"] == ("new", None)
    gone = read_table(tmp_path / "out/withdrawn.parquet", schemas.WITHDRAWN).to_pylist()
    replaced = next(row for row in gone if row["prompt"] == POOL[0]["prompt"])
    assert (replaced["earlier"], replaced["edited_to"]) == ("learnt", rows[0]["id"])
    withdrawn = {row["prompt"]: row["earlier"] for row in gone if row["edited_to"] is None}
    assert withdrawn[POOL[1]["prompt"]] == "learnt"
    assert set(withdrawn) == {row["prompt"] for row in ROWS[:12]} - {POOL[0]["prompt"], POOL[2]["prompt"]}
    found = read_metrics(tmp_path)
    assert found["changes"] == {"kept": 13, "edited": 1, "new": 1, "withdrawn": 10}
    assert (found["learnt"], found["learnt_withdrawn"]) == (0, 2)


def test_what_was_learnt_and_is_gone_is_listed_by_every_later_version_until_it_comes_back(follow, make, tmp_path):
    def read(version):
        return read_table(tmp_path / version / "lingering.parquet", schemas.LINGERING).to_pylist()

    def write(rows, before, out, **changes):
        write_subset(tmp_path / "none", [row["id"] for row in read_table(before / "examples.parquet").to_pylist()], 0)
        asked = {"previous_examples": before, "previous_subset": tmp_path / "none", "ground_set": "all"}
        return make(rows, out=tmp_path / out, version=out, **asked, **changes).to_pylist()

    follow(ROWS, [edit(POOL[0]), *REST], ground_set="all")
    taught, left = read("one"), read("out")
    assert (taught, [(row["gone_since"], row["edited_to"] is None) for row in left]) == (
        [],
        [("v2", False), ("v2", True)],
    )
    subset = read_table(tmp_path / "subset/subset.parquet").to_pylist()
    assert {row["id"] for row in left} == {row["id"] for row in subset if row["chosen"]}
    write(REST, tmp_path / "out", "v3")
    assert read("v3") == left
    back = write([POOL[1], *REST], tmp_path / "v3", "v4")
    assert (back[0]["change"], back[0]["earlier"]) == ("new", "learnt")
    assert read("v4") == [row for row in left if row["edited_to"]]
    write(REST, tmp_path / "v4", "v5")
    assert [(row["gone_since"], row["asked"]) for row in read("v5")] == [
        ("v2", POOL[0]["prompt"]),
        ("v5", POOL[1]["prompt"]),
    ]


def test_a_row_that_was_learnt_long_ago_is_not_measured_on_when_it_comes_back(follow, make, tmp_path):
    follow(ROWS, REST, ground_set="all")
    write_subset(tmp_path / "none", [row["id"] for row in read_table(tmp_path / "out/examples.parquet").to_pylist()], 0)
    apart = tmp_path / "raw/v1/apart/toy.jsonl"
    apart.parent.mkdir()
    apart.write_text(dump([POOL[1]]))
    asked = {"previous_examples": tmp_path / "out", "previous_subset": tmp_path / "none", "ground_set": "all"}
    with pytest.raises(SplitError, match="1 of 1 held-out rows have the prompt of a row that an earlier version chose"):
        make(REST, version="v3", out=tmp_path / "v3", held_out={"path": "apart"}, **asked)


def test_of_the_version_before_no_text_stays_in_memory(follow, tmp_path, monkeypatch):
    def compare():
        follow([*ROWS, ROWS[1], ROWS[4]], [edit(POOL[0]), POOL[2], *ROWS[12:]], deduplicate=False, ground_set="all")
        return read_table(tmp_path / "out/withdrawn.parquet", schemas.WITHDRAWN)

    whole = compare()
    assert whole.num_rows > 5
    monkeypatch.setattr(division, "BATCH", 3)
    assert compare().equals(whole)
    before = division.read_before(tmp_path / "one", tmp_path / "subset")
    assert not {"messages", "prompt", "response", "tools"} & set(before.table.column_names)
    names = read_table(tmp_path / "one/examples.parquet")["id"].to_pylist()
    assert [names[place] for place in before.places] == before.table["id"].to_pylist()


def test_a_chat_whose_answers_alone_changed_is_edited(follow, tmp_path):
    def change(row, role):
        turns = row["messages"]
        place = max(place for place, turn in enumerate(turns) if turn["role"] == role)
        return row | {
            "messages": [*turns[:place], turns[place] | {"content": turns[place]["content"] + "!"}, *turns[place + 1 :]]
        }

    rows = follow(CHATS, [change(CHATS[2], "assistant"), change(CHATS[5], "user"), *CHATS[6:]], ground_set="all")
    assert [row["change"] for row in rows[:3]] == ["edited", "new", "kept"]
    gone = read_table(tmp_path / "out/withdrawn.parquet", schemas.WITHDRAWN).to_pylist()
    assert [row["edited_to"] for row in gone] == [None, None, rows[0]["id"], None, None, None]
    assert gone[2]["prompt"] == "and 2 + 4?"


def test_a_row_whose_blanks_changed_is_edited(follow, tmp_path):
    rows = follow(ROWS, [POOL[0] | {"response": f"  {POOL[0]['response']}"}, *ROWS[4:]], ground_set="all")
    assert (rows[0]["change"], rows[0]["earlier"]) == ("edited", None)
    gone = read_table(tmp_path / "out/withdrawn.parquet", schemas.WITHDRAWN).to_pylist()
    assert [row["edited_to"] for row in gone if row["prompt"] == POOL[0]["prompt"]] == [rows[0]["id"]]


def test_a_repetition_with_other_blanks_is_kept_where_it_stood_and_its_text_stays_learnt(follow, tmp_path):
    twin = {"prompt": f" {POOL[0]['prompt']}", "response": POOL[0]["response"]}
    fresh = {"prompt": "what is one?", "response": "it is 1"}
    rows = follow([*ROWS, twin], [twin, *ROWS, fresh], ground_set="all")
    assert (rows[0]["change"], rows[0]["earlier"], rows[0]["used"]) == ("kept", "learnt", True)
    repeated = next(row for row in rows if row["duplicate_of"] == 0)
    assert (repeated["prompt"], repeated["change"], repeated["earlier"]) == (POOL[0]["prompt"], "kept", "learnt")
    assert read_table(tmp_path / "out/withdrawn.parquet", schemas.WITHDRAWN).num_rows == 0


def test_a_repetition_that_nobody_used_is_not_withdrawn(follow, tmp_path):
    twin = {"prompt": f" {POOL[0]['prompt']}", "response": POOL[0]["response"]}
    follow([*ROWS, twin], ROWS, ground_set="all")
    assert read_metrics(tmp_path)["changes"] == {"kept": 24, "edited": 0, "new": 0, "withdrawn": 0}


def test_repetitions_with_other_blanks_that_were_left_in_use_are_remembered_each(follow, tmp_path):
    twin = {"prompt": f" {POOL[0]['prompt']}", "response": POOL[0]["response"]}
    rows = follow([twin, POOL[0], *ROWS[4:]], [POOL[0], *ROWS[4:]], ground_set="all", deduplicate=False)
    assert (rows[0]["change"], rows[0]["earlier"]) == ("kept", "learnt")
    gone = read_table(tmp_path / "out/withdrawn.parquet", schemas.WITHDRAWN).to_pylist()
    assert [(row["prompt"], row["earlier"]) for row in gone] == [(twin["prompt"], "learnt")]


def test_only_new_and_edited_rows_of_the_pool_are_used_unless_all_are_asked_for(follow):
    second = [edit(POOL[0]), *ROWS[4:], {"prompt": "what is one?", "response": "it is 1"}]
    for ground_set, reason in (("new", "kept"), ("all", None)):
        rows = follow(ROWS[:20], second, ground_set=ground_set)
        kept = [row for row in rows if row["split"] == "pool" and row["change"] == "kept"]
        assert {row["unused_because"] for row in kept} == {reason}
        assert all(row["used"] for row in rows if row["split"] == "held_out" or row["change"] != "kept")


def test_what_an_earlier_version_taught_is_remembered_along_the_chain(follow, make, tmp_path):
    follow(ROWS, ROWS, ground_set="all")
    write_subset(tmp_path / "later", [], 0)
    rows = make(
        ROWS,
        previous_examples=tmp_path / "out",
        previous_subset=tmp_path / "later",
        out=tmp_path / "3",
        ground_set="all",
    )
    learnt = [row["prompt"] for row in rows.to_pylist() if row["earlier"] == "learnt"]
    assert learnt == [row["prompt"] for row in POOL[:2]]


def test_a_version_without_anything_new_says_so(follow):
    with pytest.raises(ExamplesError, match=r"0 usable examples .* and \d+ kept from the version before: set examples"):
        follow(ROWS, ROWS)


def test_a_target_task_is_named_by_topic(make, tmp_path):
    rows = make(ROWS, fields={"topic": "topic"}, target={"topic": "sums1", "rows": 2}).to_pylist()
    target = [row for row in rows if row["split"] == "target"]
    assert [row["topic"] for row in target] == ["sums1"] * 2
    assert all(row["used"] and not is_held_out(row["prompt"], seed=0, held_out_every=3) for row in target)
    assert read_metrics(tmp_path)["used"]["target"] == 2


def test_a_target_task_may_lie_in_a_folder_of_its_own(make, tmp_path):
    folder = tmp_path / "raw/v1/task"
    folder.mkdir(parents=True)
    (folder / "own.jsonl").write_text(dump([{"prompt": "sum?", "response": "yes"}, POOL[0]]))
    rows = make(ROWS, target={"path": "task"}).to_pylist()
    assert [(row["file"], row["split"], row["used"]) for row in rows[:2]] == [("v1/task/own.jsonl", "target", True)] * 2
    twin = next(row for row in rows[2:] if row["prompt"] == POOL[0]["prompt"])
    assert (twin["unused_because"], twin["duplicate_of"]) == ("duplicate", 1)


def test_a_folder_that_was_a_target_task_is_read_like_any_other_without_one(make, tmp_path):
    (tmp_path / "raw/v1/task").mkdir(parents=True)
    (tmp_path / "raw/v1/task/own.jsonl").write_text(dump([{"prompt": "sum?", "response": "yes"}]))
    rows = make(ROWS).to_pylist()
    assert [row["split"] in ("pool", "held_out") for row in rows] == [True] * 25


def test_a_target_task_by_topic_is_of_texts_with_all_their_repetitions(make):
    twins = [{"prompt": f"  {row['prompt']}", "response": row["response"], "topic": row["topic"]} for row in ROWS]
    rows = make([*ROWS, *twins], fields={"topic": "topic"}, target={"topic": "sums1", "rows": 3}).to_pylist()
    target = [row for row in rows if row["split"] == "target"]
    assert [row["used"] for row in target] == [True] * 3 + [False] * 3
    assert {row["same_as"] for row in target[:3]} == {row["same_as"] for row in target[3:]}


def test_a_target_row_with_the_prompt_of_a_held_out_row_is_refused(make, tmp_path):
    held_out = next(row for row in ROWS if row not in POOL)
    (tmp_path / "raw/v1").mkdir(parents=True)
    (tmp_path / "raw/v1/aim.jsonl").write_text(dump([held_out | {"response": "other"}]))
    with pytest.raises(SplitError, match=r"1 of 1 target rows have the prompt of a held-out row"):
        make(ROWS, target={"path": "aim.jsonl"})


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ({"topic": "sums9"}, SplitError, "asks for all rows of topic 'sums9' and the pool has 0"),
        ({"topic": "sums1", "rows": 99}, SplitError, "asks for 99 rows of topic 'sums1' and the pool has [1-8]"),
        ({"path": "nowhere"}, ExamplesError, "examples.target.path is 'nowhere' and .* has no such file or folder"),
        ({"path": "../v1"}, ExamplesError, r"examples.target.path is '\.\./v1'"),
        ({"path": "empty"}, ExamplesError, "empty holds no rows for examples.target.path"),
        ({"path": "blank.jsonl"}, ExamplesError, "gives no row"),
    ],
)
def test_an_empty_target_task_is_refused(make, tmp_path, target, error, text):
    (tmp_path / "raw/v1/empty").mkdir(parents=True)
    (tmp_path / "raw/v1/blank.jsonl").write_text("\n")
    with pytest.raises(error, match=text):
        make(ROWS, target=target)


FOREIGN = [{"prompt": f"capital of {name}?", "response": name[::-1]} for name in ("Peru", "Chad", "Fiji")]


def write_general(folder, rows, name="known/facts.jsonl"):
    path = folder / "raw/v1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(rows))


@pytest.mark.parametrize("name", ["known", "known/facts.jsonl", "facts.jsonl"])
def test_general_rows_are_used_and_on_no_other_side(make, tmp_path, name):
    write_general(tmp_path, [*FOREIGN, FOREIGN[0]], "facts.jsonl" if name == "facts.jsonl" else "known/facts.jsonl")
    rows = make(ROWS, retention_set=name, pool_rows=4, held_out_rows=2).to_pylist()
    general = [row for row in rows if row["split"] == "general"]
    assert [row["prompt"] for row in general] == [row["prompt"] for row in [*FOREIGN, FOREIGN[0]]]
    assert [row["unused_because"] for row in general] == [None, None, None, "duplicate"]
    assert {row["prompt"] for row in rows if row["split"] != "general"} == {row["prompt"] for row in ROWS}
    found = read_metrics(tmp_path)
    assert found["used"] == {"pool": 4, "target": 0, "validation": 0, "held_out": 2, "general": 3}
    assert "facts" not in found["held_out_share"]


def test_the_general_set_leaves_the_other_rows_alone(make, tmp_path):
    plain = make(ROWS, pool_rows=4)
    write_general(tmp_path, FOREIGN)
    with_it = make(ROWS, retention_set="known", pool_rows=4)
    columns = ["id", "split", "used", "unused_because", "change"]
    assert with_it.slice(len(FOREIGN)).select(columns).equals(plain.select(columns))


def test_a_general_row_that_may_be_trained_on_is_refused(make, tmp_path):
    write_general(tmp_path, [*FOREIGN, POOL[0] | {"response": "another"}])
    text = r"1 of 4 general rows have the prompt of another row \(1 of the pool\), first rows \[3\]"
    with pytest.raises(SplitError, match=text):
        make(ROWS, retention_set="known")


def test_a_general_row_that_the_version_before_chose_is_refused(follow, tmp_path):
    write_general(tmp_path, [POOL[0]])
    with pytest.raises(SplitError, match=r"1 of 1 general rows .* \(1 of the earlier subset\)"):
        follow(ROWS, [row for row in ROWS if row != POOL[0]], retention_set="known", ground_set="all")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            {"retention_set": "nowhere"},
            "examples.retention_set is 'nowhere' and .* has no such file or folder; put its rows there",
        ),
        ({"retention_set": "blank.jsonl"}, "examples.retention_set is 'blank.jsonl' and gives no row"),
        (
            {"retention_set": "known", "target": {"path": "known/facts.jsonl"}},
            "1 of 1 files are named by examples.target.path and examples.retention_set, first v1/known/facts.jsonl",
        ),
    ],
)
def test_an_empty_or_doubtful_general_set_is_refused(make, tmp_path, asked, text):
    write_general(tmp_path, FOREIGN)
    (tmp_path / "raw/v1/blank.jsonl").write_text("\n")
    with pytest.raises(ExamplesError, match=text):
        make(ROWS, **asked)


def test_repetitions_left_in_have_ids_of_their_own(make, tmp_path):
    rows = make([*ROWS, POOL[0], POOL[0]], deduplicate=False).to_pylist()
    same = [row for row in rows if row["prompt"] == POOL[0]["prompt"]]
    assert [row["id"] for row in same] == [same[0]["id"], f"{same[0]['id']}-1", f"{same[0]['id']}-2"]
    assert all(row["used"] for row in same)
    assert read_metrics(tmp_path)["duplicates"] == 2


def test_what_a_first_version_continues_from_has_no_rows_and_todays_columns():
    for stage, name, schema in TABLES:
        path = BASE / stage / "version=base" / f"{name}.parquet"
        assert read_table(path, schema).num_rows == 0, "write it again: python -m data.base"
    assert (BASE / "finetuning/version=base/arms/.gitkeep").exists()
