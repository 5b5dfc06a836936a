"""The examples that stand in a pair, and what a model reads of each."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from tamis.examples.conversations import Conversation
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding, TokenSequence, keep_answers
from tamis.language.prefixes import check_demos, encode_prefix
from tamis.language.rendering import encode_conversations, encode_shown
from tamis.utility.pairs import Sets
from tasks import models
from tasks.artifacts.row_sets import name_firsts, read_sets
from tasks.conversations import read_conversation
from tasks.tokens import open_template


@dataclass(frozen=True, eq=False)
class Pool:
    """The examples that stand in a pair, tokenised once."""

    ids: list[str]  # by row
    sets: Sets  # ground: used pool, of one text the first row; task: target task; learnt: what an earlier version chose
    encoding: Encoding  # of each row alone
    shown: Encoding  # of each row after a demo, which takes the place of its head
    template: Template
    conversations: list[Conversation]

    @property
    def targets(self) -> np.ndarray:
        """Places of the examples that are answered: of ground set and target task."""
        return np.union1d(self.sets["ground"], self.sets["task"])

    @cached_property
    def heads(self) -> np.ndarray:
        """Return for each row the first row with the same head: the system message and tools that it begins with."""
        first = np.empty(len(self.ids), np.int64)
        for _, places in self.encoding.by_head(range(len(self.ids))):
            first[places] = places[0]
        return first

    def prefix(self, head: int, demo: int) -> np.ndarray:
        """Return the tokens that show a demo, after the head of a row; demo -1: the head alone."""
        if demo < 0:
            return self.encoding.head(head)
        known = self._prefixes
        if (head, demo) not in known:
            known[head, demo] = encode_prefix(self.template, [self.conversations[demo]], self.conversations[head])
        return known[head, demo]

    def answered(self, target: int, demo: int) -> list[TokenSequence]:
        """Return what follows a prefix in the sequences of a row: after a demo, or after its head."""
        return (self.encoding if demo < 0 else self.shown).row(target, headless=True)

    @cached_property
    def _prefixes(self) -> dict[tuple[int, int], np.ndarray]:
        return {}


@lru_cache(maxsize=1)
def read_pool(source: Path, digest: str, model: models.ModelChoice, answer_tokens: int | None = None) -> Pool:
    """Read the examples that stand in a pair and tokenise each once; `digest` keys the cache.

    Args:
        source: the examples.
        digest: of them.
        model: whose template and tokens they are.
        answer_tokens: of a target that are scored, the first ones; None: all. A demo is shown whole.

    Raises:
        ValueError: fewer than two used texts in the pool: utility is about pairs.
    """
    table, sets = read_sets(source, ("ground", "target", "learnt"))
    rows, pool = table.to_pylist(), table.take(sets["ground"])
    distinct = pc.equal(name_firsts(pool), pool["id"]).to_numpy()
    sets = {"ground": sets["ground"][distinct], "task": sets["target"], "learnt": sets["learnt"]}
    if len(sets["ground"]) < 2:
        count = len(sets["ground"])
        raise ValueError(f"{source}: the pool has {count} used text; utility needs at least 2, add examples")
    template, conversations = open_template(model), [read_conversation(row) for row in rows]
    encoding = encode_conversations(template, conversations)
    check_demos(template, conversations, encoding)
    shown = encode_shown(template, conversations, encoding)
    if answer_tokens is not None:
        encoding, shown = keep_answers(encoding, answer_tokens), keep_answers(shown, answer_tokens)
    return Pool([row["id"] for row in rows], sets, encoding, shown, template, conversations)
