"""Every format in, one table out."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from worlds.raw_rows import CHATS, FIELDS, FORMATS, ROWS, read_metrics, read_rejects, write_saved, write_toy

from tamis.examples.conversations import fold, identify, identify_folded, make_exchange
from tamis.examples.splits import is_held_out
from tasks.artifacts.tables import provenance

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from a text or rows, with the toy model; returns the table."""
    return partial(write_toy, tmp_path, toy)


def test_rows_become_examples(make, tmp_path):
    table = make(ROWS, fields=FIELDS | {"topic": "topic"})
    first = table.to_pylist()[0]
    held_out = is_held_out("what is 0 + 0?", seed=0, held_out_every=3)
    conversation = make_exchange("what is 0 + 0?", "it is 0")
    assert first == {
        "row": 0,
        "id": identify(conversation),
        "same_as": identify_folded(conversation),
        "topic": "sums0",
        "source": None,
        "planted": None,
        "prompt": "what is 0 + 0?",
        "response": "it is 0",
        "messages": [
            {"role": "user", "content": "what is 0 + 0?", "learnt": False, "details": ""},
            {"role": "assistant", "content": "it is 0", "learnt": True, "details": ""},
        ],
        "tools": "",
        "tests": None,
        "kept": None,
        "tokens": len("<what is 0 + 0?>\n<it is 0>\n"),
        "response_tokens": 8,
        "split": "held_out" if held_out else "pool",
        "change": "new",
        "earlier": None,
        "duplicate_of": None,
        "near_duplicate_of": None,
        "cluster_size": 1,
        "weight": 1.0,
        "used": True,
        "unused_because": None,
        "note": None,
        "file": "v1/toy.jsonl",
        "line": 1,
    }
    assert table.num_rows == 24
    assert read_rejects(tmp_path) == []


def test_an_instruction_stands_before_the_prompt(make):
    plain = make(ROWS)
    table = make([row | {"i": "Add."} for row in ROWS], fields=FIELDS | {"instruction": "i"})
    assert table["prompt"].to_pylist() == [f"Add.\n\n{row['prompt']}" for row in ROWS]
    assert table["tokens"][0].as_py() == plain["tokens"][0].as_py() + len("Add.\n\n")


def test_a_system_field_is_a_message_of_its_own(make):
    table = make([row | {"s": "Add."} for row in ROWS], fields=FIELDS | {"system": "s"})
    assert table["prompt"].to_pylist() == [row["prompt"] for row in ROWS]
    assert [row[0]["content"] for row in table["messages"].to_pylist()] == ["Add."] * 24


def test_tests_stand_beside_a_response_and_are_no_part_of_its_id(make):
    plain = make(ROWS)
    table = make([row | {"t": ["assert f(1)", "assert f(2)"]} for row in ROWS], fields=FIELDS | {"tests": "t"})
    assert table["tests"].to_pylist() == ["assert f(1)\nassert f(2)"] * 24
    assert table["id"].equals(plain["id"])
    assert table["response_tokens"].equals(plain["response_tokens"])


def test_provenance_names_the_raw_files_and_no_folder_of_this_machine(make, tmp_path, toy):
    make(ROWS)
    for name in ("examples", "rejects", "withdrawn", "lingering"):
        record = provenance(tmp_path / f"out/{name}.parquet")
        assert list(record["inputs"]) == [
            "examples/version=base/examples.parquet",
            "examples/version=base/lingering.parquet",
            "raw/v1/toy.jsonl",
            "selection/version=base/subset.parquet",
        ]
        assert (record["stage"], record["version"], record["seed"]) == ("examples", "v1", 0)
        assert str(tmp_path) not in json.dumps(record)
        assert str(Path(toy.name).parent) not in json.dumps(record)


def test_provenance_tells_files_apart_whose_last_folders_are_the_same(make, tmp_path):
    for language, rows in (("de", ROWS[:12]), ("en", ROWS[12:])):
        folder = tmp_path / f"raw/v1/{language}/p/a"
        folder.mkdir(parents=True)
        (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make()
    inputs = provenance(tmp_path / "out/examples.parquet")["inputs"]
    assert {"raw/v1/de/p/a/x.jsonl", "raw/v1/en/p/a/x.jsonl"} < inputs.keys()


def test_provenance_says_how_the_template_is_filled(make, tmp_path, toy):
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}assistant:")
    make(ROWS, model=replace(toy, template_arguments='{"day": "today"}'))
    plain = provenance(tmp_path / "out/examples.parquet")["parameters"]
    assert (plain["template_arguments"], plain["chat_template"]) == ('{"day": "today"}', None)
    make(ROWS, model=replace(toy, chat_template=str(own)))
    assert re.fullmatch("[0-9a-f]{64}", provenance(tmp_path / "out/examples.parquet")["parameters"]["chat_template"])


@pytest.mark.parametrize("rows", [ROWS, CHATS], ids=["exchanges", "chats"])
def test_the_same_rows_give_the_same_bytes(make, tmp_path, rows):
    make(rows, pool_rows=5)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    make(rows, pool_rows=5)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


@pytest.mark.parametrize("rows", [ROWS, CHATS], ids=["exchanges", "chats"])
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_examples(make, tmp_path, write, rows):
    expected = make(rows, fields={"topic": "topic"}).drop_columns(["file", "line"])
    (tmp_path / "raw/v1/toy.jsonl").unlink()
    write(tmp_path / "raw/v1", rows)
    table = make(fields={"topic": "topic"})
    assert table.drop_columns(["file", "line"]).equals(expected)
    assert {name.split("/")[0] for name in table["file"].to_pylist()} == {"v1"}
    assert {len(row) for row in table["messages"].to_pylist()} == ({2} if rows is ROWS else {2, 3, 4, 5, 6, 7})


def test_one_file_is_enough(make, tmp_path):
    make(ROWS)
    table = make(raw=tmp_path / "raw/v1/toy.jsonl")
    assert set(table["file"].to_pylist()) == {"toy.jsonl"}
    assert set(table["topic"].to_pylist()) == {"sums0", "sums1", "sums2"}


def test_a_saved_folder_may_be_the_raw_path_itself(make, tmp_path):
    write_saved(tmp_path)
    table = make(raw=tmp_path / "toy")
    assert (table["file"][3].as_py(), table["line"][3].as_py(), table["topic"][3].as_py()) == ("toy", 4, "sums0")


def test_files_are_read_by_name_and_give_topics_without_a_mapping(make, tmp_path):
    plain = [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS]
    make(plain[12:], name="b.jsonl")
    (tmp_path / "raw/v1/.hidden.jsonl").write_text("no JSON")
    table = make(plain[:12], name="a.jsonl")
    assert table["prompt"].to_pylist() == [row["prompt"] for row in ROWS]
    assert table["topic"].to_pylist() == ["a"] * 12 + ["b"] * 12
    assert table["row"].to_pylist() == list(range(24))


def test_what_lies_there_and_is_not_read_is_told_with_its_reason(make, tmp_path, toy):
    (tmp_path / "raw/v1/more").mkdir(parents=True)
    (tmp_path / "raw/v1/README.md").write_text("about")
    (tmp_path / "raw/v1/more/blank.csv").write_text("")
    make(ROWS)
    found = read_metrics(tmp_path)
    assert found["ignored_files"] == [["README.md", "no data file"]]
    assert found["empty_files"] == ["v1/more/blank.csv"]
    assert found["formats"] == {"v1/more/blank.csv": "empty", "v1/toy.jsonl": "prompt_response"}


def test_files_of_different_formats_stand_side_by_side(make, tmp_path):
    make(CHATS[:12], name="a.jsonl", held_out_every=2)
    table = make([{"question": row["prompt"], "answer": row["response"]} for row in ROWS], name="b.jsonl")
    assert table.num_rows == 36
    assert read_metrics(tmp_path)["formats"] == {"v1/a.jsonl": "messages", "v1/b.jsonl": "question_answer"}


def test_chats_become_examples(make):
    chats = [
        {"m": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
        for row in ROWS
    ]
    chats[0]["m"].insert(0, {"role": "system", "content": "Add."})
    table = make(chats, fields={"messages": "m"}).to_pylist()
    assert [row["response"] for row in table] == [row["response"] for row in ROWS]
    assert [row["messages"][0]["role"] for row in table] == ["system"] + ["user"] * 23


def test_duplicates_are_kept_and_linked_to_rows(make, tmp_path):
    twin = {"prompt": " what is 1  + 1?", "response": "it is 2\n"}
    table = make([{"prompt": [1], "response": "a"}, *ROWS, twin], on_bad_row="reject").to_pylist()
    first = next(row for row in table if row["prompt"] == "what is 1 + 1?")
    assert (first["row"], first["duplicate_of"]) == (2, None)
    assert table[-1] | {"row": 25, "duplicate_of": 2, "used": False, "unused_because": "duplicate"} == table[-1]
    assert (table[-1]["same_as"] == first["same_as"], table[-1]["id"] == first["id"]) == (True, False)
    assert read_metrics(tmp_path)["duplicates"] == 1
    assert read_metrics(tmp_path)["distinct"] == 24


def test_rows_that_differ_in_leading_blanks_are_two_examples_on_one_side(make, tmp_path):
    twins = [{"prompt": f"  {row['prompt']}", "response": f"    {row['response']}"} for row in ROWS]
    table = make([*ROWS, *twins], deduplicate=False).to_pylist()
    for one, other in zip(table[:24], table[24:], strict=True):
        assert one["id"] != other["id"]
        assert (one["same_as"], one["split"]) == (other["same_as"], other["split"])
        assert other["tokens"] == one["tokens"] + 6
        assert other["response"] == f"    {one['response']}"
        assert (one["used"], other["used"]) == (True, one["split"] == "pool")
    once = make([*ROWS, *twins]).to_pylist()
    assert [row["unused_because"] for row in once] == [None] * 24 + ["duplicate"] * 24


def test_what_is_not_sampled_stays_and_says_so(make, tmp_path):
    table = make(ROWS, pool_rows=4, held_out_rows=2).to_pylist()
    assert Counter((row["split"], row["used"]) for row in table if row["used"]) == {
        ("pool", True): 4,
        ("held_out", True): 2,
    }
    assert {row["unused_because"] for row in table if not row["used"]} == {"not sampled"}
    assert read_metrics(tmp_path)["used"] == {"pool": 4, "target": 0, "validation": 0, "held_out": 2, "general": 0}


def test_low_held_out_shares_are_named(make, tmp_path):
    kept = [row for row in ROWS if not is_held_out(row["prompt"], seed=0, held_out_every=3)]
    dull = [{"prompt": row["prompt"], "response": "dull", "topic": "dull"} for row in kept]
    make(ROWS + dull, fields=FIELDS | {"topic": "topic"})
    found = read_metrics(tmp_path)
    assert found["held_out_share"]["dull"] == 0
    assert found["topics_below"] == ["dull"]
    assert found["topics"]["dull"] == len(dull)


def read_notice(version: str) -> dict[str, tuple[int, int]]:
    """Return how many rows, and how many distinct ones, each file of a version has by NOTICE."""
    text = (ROOT / "data/raw/NOTICE").read_text().partition(f"\n{version}/ ")[2].partition("\nv")[0]
    counts = re.findall(r"^    (\w+)\.yml +(\d+) +(\d+)", text, flags=re.MULTILINE)
    return {topic: (int(rows), int(distinct)) for topic, rows, distinct in counts}


COUNTS = {"v1": (566, 564), "v2": (2026, 994)}  # one row stands in two files


@pytest.mark.parametrize("version", COUNTS)
def test_the_sample_data_is_all_there_and_as_it_was(make, tmp_path, toy, version):
    table = make(
        raw=ROOT / "data/raw" / version,
        fields=FIELDS | {"topic": "topic"},
        model=replace(toy, max_tokens=10_000),
        held_out_every=5,
        pool_rows=160,
        held_out_rows=40,
    )
    rows, texts, found = Counter(), {}, table.to_pylist()
    for row in found:
        rows[row["topic"]] += 1
        texts.setdefault(row["topic"], set()).add(row["same_as"])
    assert {topic: (rows[topic], len(texts[topic])) for topic in rows} == read_notice(version)
    assert (len(found), len({row["same_as"] for row in found})) == COUNTS[version]
    assert all(row["file"] == f"{version}/{row['topic']}.jsonl" for row in found)
    assert read_metrics(tmp_path)["used"] == {"pool": 160, "target": 0, "validation": 0, "held_out": 40, "general": 0}
    assert read_metrics(tmp_path)["topics_below"] == ["greetings", "health", "humor"]


def test_no_prompt_changes_sides_between_versions():
    sides: dict[str, set] = {}
    for path in sorted((ROOT / "data/raw").glob("v*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            prompt = fold(json.loads(line)["prompt"])
            sides.setdefault(prompt, set()).add(is_held_out(prompt, seed=0, held_out_every=5))
    assert len(sides) > 500
    assert all(len(side) == 1 for side in sides.values())
