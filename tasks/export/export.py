"""Chosen rows as a folder of their own: their records in the order of choice, and a data card."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tamis.examples.conversations import Conversation
from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, digest, provenance, read_json, read_table
from tasks.conversations import read_conversation
from tasks.export import layouts
from tasks.export.card import ABOUT, Facts, shorten_path, write_card
from tasks.export.originals import ExportError, read_originals, tell_inputs
from tasks.first_look.kept_files import find_beside
from tasks.folders import Artifacts
from tasks.masks.sparse_deltas import replacing_folder
from tasks.selection.selectors import name_chooser
from tasks.settings import hint

ROWS = "rows.jsonl"
SOURCE = "source"  # what came with the raw files
LAYOUTS = tuple(ABOUT)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    rows: int
    gaps: Mapping[str, int]  # what the layout cannot say -> rows


def write_export(here: Artifacts, raw: Path, out: Path, *, layout: str, root: Path) -> Exported:
    """Write the rows that a version chose into a folder, with a card, whole or not at all.

    Args:
        here: of the version; examples and selection are read.
        raw: its raw path.
        out: the folder; it may be there if it is empty.
        layout: jsonl, which keeps the original records, | trl | llamafactory | axolotl | sharegpt.
        root: of the project.

    Raises:
        ArtifactError: nothing is chosen yet, an artifact was edited; `out` is not empty; the disk refuses.
        ExportError: an unknown layout; rows were chosen of other examples; a raw file has changed since.
    """
    if layout not in LAYOUTS:
        raise ExportError(f"there is no layout {layout!r}{hint(layout, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} is there and is not empty; give another folder, or remove it")
    examples, subset = here.examples / "examples.parquet", here.selection / "subset.parquet"
    chosen, pool = read_chosen(examples, subset)
    rows, gaps, parted = make_rows(chosen, layout, raw, examples)
    name = f"tamis_{here.version}"
    with replacing_folder(out) as part:
        _write_lines(rows, part / ROWS)
        for file, text in layouts.describe_files(layout, map(json.loads, rows), name, ROWS).items():
            (part / file).write_text(text, encoding="utf-8")
        telling = _copy_telling(raw, root, part / SOURCE)
        facts = Facts(
            layout=layout,
            file=ROWS,
            name=name,
            version=here.version,
            raw=shorten_path(raw),
            files=chosen["file"].to_pylist(),
            pool=pool,
            rejected=read_table(here.examples / "rejects.parquet", schemas.REJECTS).num_rows,
            parted=parted,
            gaps=gaps,
            examples=provenance(examples),
            selection=provenance(subset),
            chooser=name_chooser(provenance(subset)["parameters"] | read_json(here.selection / "selection.json")),
            digests=_list_digests(part, examples, subset),
            telling=telling,
        )
        (part / "README.md").write_text(write_card(facts), encoding="utf-8")
    return Exported(len(rows), gaps)


def read_chosen(examples: Path, subset: Path) -> tuple[pa.Table, int]:
    """Return the chosen examples in the order of choice, and how many rows there were to choose from.

    Raises:
        ArtifactError: one of the tables is missing or was edited.
        ExportError: the rows were chosen of other examples.
    """
    picked = read_table(subset, schemas.SUBSET)
    made_of = provenance(subset)["inputs"].get("/".join(examples.parts[-3:]))
    if made_of != digest(examples):
        version = provenance(examples)["version"]
        raise ExportError(f"the rows of {version} were chosen of other examples; choose anew: `tamis run {version}`")
    order = picked.filter(picked["chosen"]).sort_by("rank")["id"]
    table = read_table(examples, schemas.EXAMPLES)
    used = table.filter(table["used"])
    return used.take(pc.index_in(order, value_set=used["id"])), picked.num_rows


def make_rows(chosen: pa.Table, layout: str, raw: Path, examples: Path) -> tuple[list[str], dict[str, int], bool]:
    """Return the rows as lines of JSON, what they cannot say, and whether they are prompts and completions."""
    if layout == "jsonl":
        places = list(zip(chosen["file"].to_pylist(), chosen["line"].to_pylist(), strict=True))
        shortened = chosen.num_rows - chosen["note"].null_count
        gaps = {"the record holds more than what was scored and chosen (column `note`)": shortened} if shortened else {}
        return read_originals(places, raw, examples), gaps, False
    parted = layout == "trl" and layouts.are_parted(_read(chosen))
    write = layouts.make_writer(layout, parted=parted)
    rows = [json.dumps(write(one), ensure_ascii=False) for one in _read(chosen)]
    return rows, layouts.count_gaps(layout, _read(chosen), parted=parted), parted


def _read(chosen: pa.Table) -> Iterator[Conversation]:
    for batch in chosen.select(["messages", "tools"]).to_batches(max_chunksize=1024):
        yield from map(read_conversation, batch.to_pylist())


def _write_lines(rows: list[str], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{row}\n" for row in rows)


def _copy_telling(raw: Path, root: Path, out: Path) -> list[str]:
    found = find_beside(raw, root)
    if found:
        out.mkdir()
    for path in found:
        shutil.copyfile(path, out / path.name)
    return [path.name for path in found]


def _list_digests(part: Path, examples: Path, subset: Path) -> dict[str, str]:
    """Return the digests of what was written and of all that it was made of."""
    made: dict[str, Any] = {ROWS: digest(part / ROWS)}
    made |= {"/".join(path.parts[-3:]): digest(path) for path in (examples, subset)}
    return made | tell_inputs(examples)
