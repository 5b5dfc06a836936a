"""A small corpus as an examples artifact, for tests of the stages that come after `examples`."""

from pathlib import Path

import pyarrow as pa

from tamis.examples.conversations import Conversation, Message, identify, identify_folded, make_exchange
from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, write_table
from tasks.conversations import write_conversation

TOPICS = ("sums", "letters", "greetings")


def write_examples(
    folder: Path,
    pool: int = 6,
    held_out: int = 2,
    *,
    target: int = 0,
    learnt: int = 0,
    general: int = 0,
    validation: int = 0,
) -> list[str]:
    """Write `examples.parquet` with short rows of three topics and return the used pool's ids in order.

    After the pool and the held-out rows come `target` rows of the target task, then `learnt` rows of the pool that an
    earlier version chose and that are not used, then `general` rows of what must not be forgotten, then `validation`
    rows.
    """
    splits = ["pool"] * pool + ["held_out"] * held_out + ["target"] * target
    rows = [row(place, split) for place, split in enumerate(splits)]
    rows += [learn(row(len(rows) + place, "pool", used=False)) for place in range(learnt)]
    rows += [row(len(rows) + place, "general") for place in range(general)]
    rows += [row(len(rows) + place, "validation") for place in range(validation)]
    return write_rows(folder, rows)


def write_conversations(folder: Path, pool: int = 6, held_out: int = 2, *, target: int = 0) -> list[str]:
    """Write `examples.parquet` with conversations of two and three exchanges and return the pool's ids in order."""
    splits = ["pool"] * pool + ["held_out"] * held_out + ["target"] * target
    return write_rows(folder, [row(place, split) | tell(talk(place)) for place, split in enumerate(splits)])


def write_rows(folder: Path, rows: list[dict]) -> list[str]:
    """Write `examples.parquet` with these rows and return the used pool's ids in order."""
    table = pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)
    write_table(table, folder / "examples.parquet", Provenance("examples", "v1"))
    return [one["id"] for one in rows if one["split"] == "pool" and one["used"]]


def learn(one: dict) -> dict:
    """Return a row as one that an earlier version chose; unused, it was kept out as known."""
    return one | {"change": "kept", "earlier": "learnt", "unused_because": None if one["used"] else "kept"}


def row(place: int, split: str, used: bool = True) -> dict:
    """Return the row at a place; the same text for the same place, in any version."""
    prompt, response = f"what is {place} + {place}", f"{2 * place}" + "!" * (place % 3)
    return {
        "row": place,
        "topic": TOPICS[place % 3],
        **tell(make_exchange(prompt, response)),
        "tokens": len(prompt) + len(response) + 5,
        "response_tokens": len(response) + 1,
        "cluster_size": 1,
        "weight": 1.0,
        "split": split,
        "change": "new",
        "used": used,
        "file": "toy.jsonl",
        "line": place + 1,
    }


def talk(place: int) -> Conversation:
    """Return the conversation at a place: the same for the same place.

    Every other one has a system message, of two kinds; of three, one holds the reasoning of its first answer and two
    have a third exchange; of six, one has a call of a tool, as text, and what the tool says; of five, one has a first
    answer that is not learnt.
    """
    thought = '{"reasoning_content": "twice it"}' if place % 3 == 0 else ""
    turns = [Message("system", f"Rule {place % 4}: count.")] if place % 2 else []
    turns.append(Message("user", f"what is {place} + {place}"))
    turns.append(Message("assistant", f"{2 * place}", learnt=place % 5 != 1, details=thought))
    turns.append(Message("user", "and one more?"))
    if place % 6 == 2:
        turns.append(Message("assistant", f"<tool_call>add {place}</tool_call>", learnt=True))
        turns.append(Message("tool", f"sum {2 * place + 1}"))
    turns.append(Message("assistant", f"  {2 * place + 1}" + "!" * (place % 3), learnt=True))
    if place % 3 != 1:
        turns += [Message("user", "thanks\n"), Message("assistant", f"bye {place}", learnt=True)]
    return Conversation(tuple(turns))


def reword(one: dict, **texts: str) -> dict:
    """Return a row of one exchange with another prompt or response, under its old id."""
    said = {name: one[name] for name in ("prompt", "response")} | texts
    return one | write_conversation(make_exchange(**said))


def tell(conversation: Conversation) -> dict:
    """Return a conversation as columns of the examples, with its ids."""
    ids = {"id": identify(conversation), "same_as": identify_folded(conversation)}
    return ids | write_conversation(conversation)


def write_subset(folder: Path, pool: list[str], chosen: int) -> None:
    """Write `subset.parquet`, in which the first rows of a pool are chosen."""
    rows = [
        {"id": each, "topic": "toy", "response_tokens": 1, "chosen": place < chosen, "rank": place + 1, "gated": False}
        for place, each in enumerate(pool)
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.SUBSET)
    write_table(table, folder / "subset.parquet", Provenance("selection", "v1"))
