"""Chosen rows as a folder: original records in the order of choice, or other layouts, a card, and refusals."""

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from worlds.places import find_artifacts
from worlds.raw_rows import ROWS, dump, write_toy

from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, Provenance, digest, digest_inputs, write_table
from tasks.export.export import LAYOUTS, write_export
from tasks.export.originals import ExportError
from tasks.folders import Artifacts
from tasks.selection.settings import SelectionSettings

CHATS = [
    {
        "url": f"https://x/{k}",
        "messages": [
            {"role": "user", "content": f"how {k}?"},
            {"role": "assistant", "content": "so"} | ({"weight": 0} if k % 3 else {}),
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": f"thus {k}"},
        ],
    }
    for k in range(9)
]
LINES = dump(ROWS).replace('"prompt": ', '"prompt":   ').replace("it is", "it\\u0020is")  # as no program writes them


@pytest.fixture
def here(tmp_path, toy) -> Artifacts:
    """A version of three files of different kinds, of whose pool every second row is chosen, the last one first."""
    raw = tmp_path / "project/raw/v1"
    raw.mkdir(parents=True)
    (raw / "rows.jsonl").write_text("\ufeff" + LINES.replace("\n", "\r\n"), newline="")
    (raw / "chats.json").write_text(json.dumps(CHATS, indent=1))
    pq.write_table(pa.table({"question": ["why é?", "who?", "what?"], "answer": ["so", "me", "it"]}), raw / "q.parquet")
    (raw / "LICENSE").write_text("CC0")
    home = tmp_path / "project"
    write_toy(home, toy, raw=raw, out=home / "examples/version=v1", fields={}, held_out_every=7)
    made = find_artifacts(home, "v1", examples=home / "examples/version=v1", selection=home / "selection/version=v1")
    choose(made)
    return made


def choose(here: Artifacts) -> None:
    """Write a subset of the pool as it is."""
    table = here.examples / "examples.parquet"
    pool = [row for row in pq.read_table(table).to_pylist() if row["used"] and row["split"] == "pool"]
    rows = [
        {"id": row["id"], "topic": row["topic"], "response_tokens": row["response_tokens"], "chosen": place % 2 == 0}
        | {"gated": False}
        | ({"rank": (len(pool) + 1 - place) // 2} if place % 2 == 0 else {})
        for place, row in enumerate(pool)
    ]
    made = Provenance("selection", "v1", asdict(SelectionSettings()), digest_inputs(table))
    write_table(pa.Table.from_pylist(rows, schema=schemas.SUBSET), here.selection / "subset.parquet", made)


def export(here: Artifacts, layout: str = "jsonl") -> Path:
    home = here.examples.parents[1]
    write_export(here, home / "raw/v1", home / "out", layout=layout, root=home)
    return home / "out"


def chosen(here: Artifacts) -> list[dict]:
    """Return the chosen examples in the order of choice, found the slow way."""
    ranks = {row["id"]: row["rank"] for row in pq.read_table(here.selection / "subset.parquet").to_pylist()}
    rows = pq.read_table(here.examples / "examples.parquet").to_pylist()
    found = [row for row in rows if row["used"] and ranks.get(row["id"]) is not None]
    return sorted(found, key=lambda row: ranks[row["id"]])


def test_original_records_come_in_the_order_of_choice(here):
    lines = (export(here) / "rows.jsonl").read_bytes().splitlines()
    examples = chosen(here)
    assert len(lines) == len(examples) > 10
    assert {example["file"] for example in examples} == {"v1/rows.jsonl", "v1/chats.json", "v1/q.parquet"}
    for line, example in zip(lines, examples, strict=True):
        if example["file"] == "v1/rows.jsonl":
            assert line == LINES.encode().splitlines()[example["line"] - 1]
        elif example["file"] == "v1/chats.json":
            assert json.loads(line) == CHATS[example["line"] - 1]
        else:
            assert json.loads(line)["question"] == example["prompt"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_back_by_datasets(here, layout, tmp_path):
    out = export(here, layout)
    back = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    written = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(back) == len(written) == len(chosen(here))
    for row, line in zip(back, written, strict=True):
        assert {key: value for key, value in row.items() if value is not None}.keys() == line.keys()
    last = {"trl": "messages", "axolotl": "messages"}.get(layout, "conversations")
    if layout != "jsonl":
        ends = [row[last][-1].get("content", row[last][-1].get("value")) for row in back]
        assert ends == [example["response"] for example in chosen(here)]


def test_the_card_tells_source_licence_method_settings_digests_and_gaps(here):
    out = export(here, "trl")
    card, examples = (out / "README.md").read_text(), here.examples / "examples.parquet"
    for text in (
        f"{len(chosen(here))} rows of v1, chosen by delift",
        "| `v1/chats.json` | ",
        "[LICENSE](source/LICENSE)",
        "Selector `delift`, which maximises conditional gain; source: DELIFT, arXiv 2411.04425.",
        '"selector": "delift"',
        '"held_out_every": 7',
        f"| `rows.jsonl` | `{digest(out / 'rows.jsonl')}` |",
        f"| `examples/version=v1/examples.parquet` | `{digest(examples)}` |",
        f"| `raw/v1/rows.jsonl` | `{digest(here.examples.parents[1] / 'raw/v1/rows.jsonl')}` |",
        "turns of the assistant that are not to be learnt stand here as all others do",
        "set `assistant_only_loss=True`",
    ):
        assert text in card
    assert str(here.examples.parents[1]) not in card
    assert (out / "source/LICENSE").read_text() == "CC0"


def test_the_card_says_what_a_pilot_took_instead_of_the_choice(here):
    record = {"selector": "embedding", "pilot": {"decision": "chance"}}
    (here.selection / "selection.json").write_text(json.dumps(record))
    assert "chosen by chance, which a pilot took in place of embedding" in (export(here) / "README.md").read_text()


def test_the_card_says_where_no_licence_is_known(here):
    (here.examples.parents[1] / "raw/v1/LICENSE").unlink()
    assert "No licence, notice or readme lies beside the raw files" in (export(here) / "README.md").read_text()


def test_a_raw_file_that_changed_since_is_refused_by_name_and_nothing_is_written(here):
    path = here.examples.parents[1] / "raw/v1/rows.jsonl"
    path.write_text(path.read_text() + "\n")
    text = (
        r"^1 of 3 raw files with chosen rows of v1 are not what its examples were made of, first v1/rows.jsonl \(its "
        r"digest differs\); bring them back, or make the version again: `tamis run v1`$"
    )
    with pytest.raises(ExportError, match=text):
        export(here)
    path.unlink()
    with pytest.raises(ExportError, match=r"first v1/rows.jsonl \(gone\); "):
        export(here)
    assert not (here.examples.parents[1] / "out").exists()


def test_other_layouts_need_no_raw_file(here):
    (here.examples.parents[1] / "raw/v1/rows.jsonl").unlink()
    assert (export(here, "sharegpt") / "rows.jsonl").exists()


def test_rows_chosen_of_other_examples_are_refused(here, toy):
    home = here.examples.parents[1]
    write_toy(home, toy, raw=home / "raw/v1", out=here.examples, fields={}, held_out_every=5)
    with pytest.raises(ExportError, match=r"the rows of v1 were chosen of other examples; choose anew: `tamis run v1`"):
        export(here)


def test_a_folder_that_holds_something_is_refused(here):
    export(here)
    with pytest.raises(ArtifactError, match=r"out is there and is not empty; give another folder, or remove it"):
        export(here)


def test_an_unknown_layout_is_refused_with_the_nearest(here):
    with pytest.raises(ExportError, match=r"no layout 'lamafactory' \(did you mean 'llamafactory'\?\); known: jso"):
        export(here, "lamafactory")


def test_a_full_disk_leaves_nothing_behind(here, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.export.export._write_lines", fail)
    with pytest.raises(ArtifactError, match="No space left on device; nothing was left behind"):
        export(here)
    assert [path.name for path in here.examples.parents[1].iterdir() if "out" in path.name] == []
