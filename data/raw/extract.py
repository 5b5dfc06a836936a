"""Extracts the sample data from two wheels of chatterbot-corpus: one JSONL file per topic and version, and NOTICE.

    pip download --no-deps chatterbot-corpus==1.2.0 chatterbot-corpus==1.3.3
    python data/raw/extract.py chatterbot_corpus-1.2.0-py2.py3-none-any.whl chatterbot_corpus-1.3.3-py2.py3-none-any.whl

A row is the first utterance of a conversation and the second one, as they are. Nothing is removed, not even
what stands there twice. The same wheels give the same bytes.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
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
second as `response`, with the name of the file as `topic`; one JSONL file per topic. Text is unchanged and nothing is
removed.
What was not taken: utterances after the second (further answers or further turns), counted below as `later`;
other languages.
"""


@dataclass(frozen=True)
class Topic:
    """One file of the corpus."""

    name: str  # the file's stem
    conversations: list[list[str]]

    def rows(self) -> list[dict[str, str]]:
        """Return the first two utterances of every conversation."""
        return [{"prompt": talk[0], "response": talk[1], "topic": self.name} for talk in self.conversations]


def read_topics(wheel: Path) -> Iterator[Topic]:
    """Yield the English topics of a wheel in the order of their names."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(ENGLISH) and name.endswith(".yml"):
                content = yaml.safe_load(archive.read(name).decode("utf-8"))
                yield Topic(PurePosixPath(name).stem, content["conversations"])


def write_topic(topic: Topic, folder: Path) -> None:
    """Write one topic as JSONL."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in topic.rows()]
    (folder / f"{topic.name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def describe(version: str, wheel: Path, topics: list[Topic]) -> str:
    """Return a version's part of NOTICE: the wheel, and the counts of each of its files."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lines = [
        f"\n{version}/  {wheel.name}\n    sha256 {digest}\n",
        f"    {'file':<20}{'rows':>7}{'distinct':>10}{'later':>7}\n",
    ]
    counts = [(f"{topic.name}.yml", *count(topic)) for topic in topics]
    counts.append(("all", *(sum(column) for column in zip(*(line[1:] for line in counts), strict=True))))
    return "".join(
        lines + [f"    {name:<20}{rows:>7}{distinct:>10}{later:>7}\n" for name, rows, distinct, later in counts]
    )


def count(topic: Topic) -> tuple[int, int, int]:
    """Return how many rows a topic has, how many of them differ, and how many later utterances were not taken."""
    distinct = {(talk[0], talk[1]) for talk in topic.conversations}
    return len(topic.conversations), len(distinct), sum(len(talk) - 2 for talk in topic.conversations)


def main(first: str, second: str) -> None:
    """Write v1/ from the first wheel, v2/ from the second, and NOTICE."""
    notice = [HEAD]
    for version, wheel in (("v1", Path(first)), ("v2", Path(second))):
        topics = list(read_topics(wheel))
        folder = FOLDER / version
        folder.mkdir(exist_ok=True)
        for topic in topics:
            write_topic(topic, folder)
        notice.append(describe(version, wheel, topics))
    (FOLDER / "NOTICE").write_text("".join(notice), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
