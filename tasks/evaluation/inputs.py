"""What is evaluated, and on which rows: the held-out and general rows and the models that are asked, read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.evaluation.bootstrap import ORDER
from tamis.examples.conversations import Conversation
from tamis.examples.splits import GENERAL, HELD_OUT, VALIDATION
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding, join_rows, put_before, refuse_long
from tamis.language.prefixes import check_demos, encode_prefix
from tamis.language.rendering import encode_conversations, encode_question, encode_shown
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.row_sets import FAULTS, count_faults, read_set
from tasks.artifacts.tables import ArtifactError, digest_inputs, read_json, read_table, read_texts
from tasks.conversations import read_conversation
from tasks.tokens import open_template

TRAINED, SHOWN = "finetuning", "in_context"  # how a learner comes to know its rows


class EvaluationError(ValueError):
    """The held-out rows or an arm cannot be evaluated."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """What a model reads of some rows."""

    encoding: Encoding
    questions: list[np.ndarray]  # tokens of each up to the last learnt turn, which a model is to write itself


@dataclass(frozen=True)
class HeldOut:
    """The used held-out rows of a version and of the one before, and the general rows, tokenised once.

    Or validation rows, where these are asked.
    """

    rows: list[dict[str, Any]]  # each id once, this version's first
    conversations: list[Conversation]
    prompts: Prompts
    version: str  # this one
    previous: str  # the one before; this one, where no other was asked for
    of: Mapping[str, list[int]]  # version -> places of its rows; `general`, where there are such rows, of these


@dataclass(frozen=True)
class Run:
    """A model that is evaluated: the base, the one that training started from, or an arm and a seed."""

    arm: str  # base | previous | chosen | random | balanced | fresh | full
    seed: int | None = None  # None: base, previous
    learner: str = "none"  # none | finetuning | in_context
    rows: int = 0  # of this version that it learns from
    folder: Path | None = None  # of its weights; None: the base's
    prompts: Prompts | None = None  # of its own, of this version's rows; None: those of `HeldOut`
    fewer_demos: int = 0  # held-out rows that leave no room for all demos

    @property
    def label(self) -> str:
        """Return its name for people."""
        name = self.arm if self.seed is None else f"{self.arm}-{self.seed}"
        return f"{name} in context" if self.learner == SHOWN else name


def read_held_out(examples: Mapping[str, Path], model: models.ModelChoice, name: str = HELD_OUT) -> HeldOut:
    """Read and tokenise the used held-out rows of these versions, and the first one's general rows.

    Only the first must have held-out rows.

    Args:
        examples: folders of the artifact, by version.
        model: reads the rows.
        name: of the set; of another one than the held-out rows, no general rows are read.
    """
    sources = {version: folder / "examples.parquet" for version, folder in examples.items()}
    found = {version: read_set(source, name).to_pylist() for version, source in sources.items()}
    version, previous = next(iter(found)), [*found][-1]
    if not found[version] and name == VALIDATION:
        raise EvaluationError(
            f"no used row of {sources[version]} validates, so no gate can be asked; set examples.validation_every: 10, "
            "or acceptance.loss: null and acceptance.retention: null"
        )
    if not found[version]:
        raise EvaluationError(
            f"no used row of {sources[version]} is held out, so nothing can be compared; lower "
            "examples.held_out_every, raise examples.held_out_rows or add raw rows"
        )
    general = read_set(sources[version], GENERAL).to_pylist() if name == HELD_OUT else []
    if general and GENERAL in examples:
        raise EvaluationError(
            f"a data version is called {GENERAL!r}, as is the set of examples.retention_set; rename it"
        )
    found |= {GENERAL: general} if general else {}
    first: dict[str, dict[str, Any]] = {}
    for row in (row for ours in found.values() for row in ours):
        first.setdefault(row["id"], row)
    rows, place = list(first.values()), {name: number for number, name in enumerate(first)}
    template, conversations = open_template(model), [read_conversation(row) for row in rows]
    encoding = encode_conversations(template, conversations)
    refuse_long(encoding, [row["row"] for row in rows], model.max_tokens)
    prompts = Prompts(encoding, [encode_question(template, one) for one in conversations])
    of = {name: [place[row["id"]] for row in ours] for name, ours in found.items()}
    return HeldOut(rows, conversations, prompts, version, previous, of)


def show_demos(
    template: Template, held_out: HeldOut, demos: Sequence[Sequence[Conversation]], *, max_tokens: int, new_tokens: int
) -> tuple[Prompts, int]:
    """Return the first held-out rows with demonstrations before them, the nearest last, and how many lack some of them.

    A row keeps the nearest k of its demos, the largest k with prefix + row <= max_tokens, and likewise with
    `new_tokens` in the place of its last answer.

    Args:
        template: how conversations are written.
        held_out: the rows; the first of them are asked.
        demos: per row that is asked, nearest first.
        max_tokens: that a sequence may have.
        new_tokens: that are generated, at most.
    """
    rows, heads, questions, fewer = [], [], [], 0
    asked, encoding = held_out.conversations[: len(demos)], held_out.prompts.encoding.pick(range(len(demos)))
    check_demos(template, asked, encoding)
    shown = encode_shown(template, asked, encoding)
    for place, near in enumerate(demos):
        own = shown.row(place, headless=True)
        question = encode_question(template, asked[place], head=len(shown.head(place)))
        room = max_tokens - max(*map(len, own), len(question) + new_tokens)
        count, prefix = len(near), encode_prefix(template, near[::-1], asked[place])
        while count and len(prefix) > room:
            count -= 1
            prefix = encode_prefix(template, near[:count][::-1], asked[place])
        if not count:  # it is read alone, as it was found to fit
            own, prefix = encoding.row(place, headless=True), encoding.head(place)
            question = held_out.prompts.questions[place][len(prefix) :]
        fewer += count < len(near)
        rows.append([put_before(prefix, each) for each in own])
        heads.append(len(prefix))
        questions.append(np.concatenate([prefix, question]))
    return Prompts(join_rows(rows, heads), questions), fewer


def read_runs(arms: Path, previous_arms: Path | None) -> list[Run]:
    """Return the base, the model that training started from, where it is wanted, and the runs of `finetuning.json`."""
    listing = arms / "finetuning.json"
    found = read_json(listing, ["arms", "continues_from", "continues_from_digest"])
    listed, folders = found["arms"], {label: arms / "arms" / label for label in found["arms"]}
    missing = [label for label, folder in folders.items() if not folder.is_dir()]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {len(listed)} arms have no folder in {arms / 'arms'}, first {missing[:3]}; "
            "restore them with `dvc checkout` or train them again with `tamis run`"
        )
    named = [(*label.rsplit("-", 1), label) for label in listed]
    order = sorted(named, key=lambda one: (ORDER.index(one[0]), int(one[1])))
    trained = [Run(arm, int(seed), TRAINED, listed[label]["rows"], folders[label]) for arm, seed, label in order]
    if previous_arms is None or found["continues_from"] is None:
        return [Run("base"), *trained]
    start = previous_arms / "arms" / found["continues_from"]
    if digest_inputs(*sorted(start.glob("*.safetensors"))) != found["continues_from_digest"]:
        raise ArtifactError(
            f"{start} does not hold the weights that the arms were trained on from: they were made again since, or "
            "are not there; restore them with `dvc checkout` or train the arms again with `tamis run`"
        )
    return [Run("base"), Run("previous", learner=TRAINED, folder=start), *trained]


def read_faults(examples: Path, runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return what is known to be wrong with the rows of each trained arm (`count_faults`), seed by seed."""
    table = read_table(examples / "examples.parquet", schemas.EXAMPLES, ["id", *FAULTS])
    found: dict[str, list[dict[str, Any]]] = {}
    for run in (run for run in runs if run.learner == TRAINED and run.seed is not None):
        ids = read_texts(run.folder / "rows.json")
        places = pc.index_in(pa.array(ids, pa.string()), value_set=table["id"].combine_chunks())
        found.setdefault(run.arm, []).append(count_faults(table.take(places.drop_null())))
    return found


def read_rows(examples: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return the examples that arms were trained on, by id, in their order."""
    table = read_table(examples / "examples.parquet", schemas.EXAMPLES)
    found = {row["id"]: row for row in table.to_pylist() if row["id"] in ids}
    if strangers := sorted(ids - found.keys()):
        raise ArtifactError(
            f"{len(strangers)} of {len(ids)} rows that arms were trained on are not among the examples, first "
            f"{strangers[:3]}; these artifacts belong to different runs: make them again with `tamis run`"
        )
    return found
