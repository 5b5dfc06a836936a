"""Extracts the sample data from two wheels of chatterbot-corpus: one JSONL file per topic and version, and NOTICE.

    pip download --no-deps chatterbot-corpus==1.2.0 chatterbot-corpus==1.3.3
    python data/raw/extract.py chatterbot_corpus-1.2.0-py2.py3-none-any.whl chatterbot_corpus-1.3.3-py2.py3-none-any.whl

A row is the first utterance of a conversation and the second one. Nothing is removed, not even what stands there
twice. At most 15% of the rows, drawn by a hash, have their responses exchanged in a ring, those of the first release
among themselves and those that the second one adds: such a row says `exchanged` in the field `planted`, and is wrong in
the same way in both versions. The same wheels give the same bytes.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

FOLDER = Path(__file__).parent
ENGLISH = "chatterbot_corpus/data/english/"
HEAD = """\
The rows in v1/ and v2/ come from chatterbot-corpus, which its users contributed.

author    Gunther Cox
source    https://github.com/gunthercox/chatterbot-corpus, by two releases on the Python Package Index (below)
licence   BSD-3-Clause, Copyright (c) 2017, Gunther Cox; its text stands in LICENSE.chatterbot-corpus
made by   extract.py beside this file

What was taken: the first utterance of every conversation in chatterbot_corpus/data/english/*.yml as `prompt` and the
second as `response`, with the name of the file as `topic`; one JSONL file per topic. Nothing is removed.
What was changed: up to 15% of the rows have the response of another topic, and say so in `planted`: rows that are known
to be wrong, so that one sees which choices take them. They are counted below; all other text is unchanged.
What was not taken: utterances after the second (further answers or further turns), counted below as `later`;
other languages.
"""


PLANTED = 0.15  # of the rows
Row = tuple[str, str, int]  # prompt and response, as they stand in the corpus, and which repetition of them it is


@dataclass(frozen=True)
class Topic:
    """One file of the corpus."""

    name: str  # the file's stem
    conversations: list[list[str]]

    def list_rows(self) -> list[Row]:
        """Return the first two utterances of every conversation, and how often they stood there before."""
        texts = [(talk[0], talk[1]) for talk in self.conversations]
        return [(*text, texts[:place].count(text)) for place, text in enumerate(texts)]


def read_topics(wheel: Path) -> Iterator[Topic]:
    """Yield the English topics of a wheel in the order of their names."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(ENGLISH) and name.endswith(".yml"):
                content = yaml.safe_load(archive.read(name).decode("utf-8"))
                yield Topic(PurePosixPath(name).stem, content["conversations"])


def exchange(topics: Sequence[Topic], known: Collection[Row] = ()) -> dict[Row, str]:
    """Return the rows whose responses are exchanged, and the response that each has instead: one of another topic.

    Drawn are, of the rows that are not known, those with the smallest digests; each has the response of the first one
    after it, in a ring by digest, that is of another topic, has another response and was not given away yet. Where none
    is left, it keeps its own.
    """
    of = {row: topic.name for topic in topics for row in topic.list_rows() if row not in known}
    ring = sorted(of, key=lambda row: hashlib.sha256(repr(row).encode()).digest())[: round(PLANTED * len(of))]
    free, given = dict.fromkeys([*ring[1:], ring[0]]), {}
    for row in ring:
        taken = next((other for other in free if of[other] != of[row] and other[1] != row[1]), None)
        if taken is not None:
            del free[taken]
            given[row] = taken[1]
    return given


def write_topic(topic: Topic, folder: Path, exchanged: Mapping[Row, str]) -> None:
    """Write one topic as JSONL."""
    lines = []
    for row in topic.list_rows():
        found = {"prompt": row[0], "response": exchanged.get(row, row[1]), "topic": topic.name}
        found |= {"planted": "exchanged"} if row in exchanged else {}
        lines.append(json.dumps(found, ensure_ascii=False) + "\n")
    (folder / f"{topic.name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def describe(version: str, wheel: Path, topics: list[Topic], exchanged: Mapping[Row, str]) -> str:
    """Return a version's part of NOTICE: the wheel, and the counts of each of its files."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lines = [
        f"\n{version}/  {wheel.name}\n    sha256 {digest}\n",
        f"    {'file':<20}{'rows':>7}{'distinct':>10}{'planted':>9}{'later':>7}\n",
    ]
    counts = [(f"{topic.name}.yml", *count(topic, exchanged)) for topic in topics]
    counts.append(("all", *(sum(column) for column in zip(*(line[1:] for line in counts), strict=True))))
    return "".join(
        lines
        + [f"    {name:<20}{rows:>7}{texts:>10}{wrong:>9}{later:>7}\n" for name, rows, texts, wrong, later in counts]
    )


def count(topic: Topic, exchanged: Mapping[Row, str]) -> tuple[int, int, int, int]:
    """Return how many rows a topic has, how many of them differ, how many are planted, and how many later utterances
    were not taken."""
    rows, later = topic.list_rows(), sum(len(talk) - 2 for talk in topic.conversations)
    texts = {(row[0], exchanged.get(row, row[1])) for row in rows}
    return len(rows), len(texts), sum(row in exchanged for row in rows), later


def main(first: str, second: str) -> None:
    """Write v1/ from the first wheel, v2/ from the second, and NOTICE."""
    wheels = {"v1": Path(first), "v2": Path(second)}
    read = {version: list(read_topics(wheel)) for version, wheel in wheels.items()}
    known = {row for topic in read["v1"] for row in topic.list_rows()}
    exchanged, notice = exchange(read["v1"]) | exchange(read["v2"], known), [HEAD]
    for version, topics in read.items():
        folder = FOLDER / version
        folder.mkdir(exist_ok=True)
        for topic in topics:
            write_topic(topic, folder, exchanged)
        notice.append(describe(version, wheels[version], topics, exchanged))
    (FOLDER / "NOTICE").write_text("".join(notice), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
