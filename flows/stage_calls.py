"""The stages, called: each one's function with what params.yaml gives it, and the folders of what it reads and writes.

Modules are imported when they are called: a process that runs one stage loads nothing of the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flows.params import Params
from tasks.selection.selectors import SELECTORS

DATA = Path("data")
CACHE = Path(".cache")

T = TypeVar("T")
R = TypeVar("R")
Notes = Mapping[str, Any] | None  # what a stage says of this one run
Map = Callable[[Callable[[T], R], Sequence[T]], Iterator[R]]
Where = Callable[[str, str], Path]  # stage and version -> folder of its artifacts


def folder(name: str, version: str) -> Path:
    """Return the folder of a stage's artifacts.

    >>> folder("utility", "v1").as_posix()
    'data/utility/version=v1'
    """
    return DATA / name / f"version={version}"


def make_examples(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Read raw rows."""
    from tasks.examples.examples import write_examples

    source = values.versions[version]
    return write_examples(
        raw=Path(source.raw),
        previous_examples=where("examples", source.previous),
        previous_subset=where("selection", source.previous),
        out=where("examples", version),
        version=version,
        model=language(values),
        settings=values.examples,
        held_out_share=values.audit.held_out_share,
    )


def make_embedding(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Encode texts."""
    from tasks.embedding.embedding import write_embedding

    reads = SELECTORS[values.selection.selector].reads
    return write_embedding(
        examples=where("examples", version),
        out=where("embedding", version),
        store=CACHE / "embeddings",
        version=version,
        model=encoder(values),
        settings=values.embedding,
        runtime=values.runtime,
        wanted=reads == "embedding" or (reads == "utility" and values.utility.kernel != "exact"),
    )


def make_utility(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Score pairs."""
    from tasks.utility.utility import write_utility

    return write_utility(
        examples=where("examples", version),
        embedding=where("embedding", version),
        out=where("utility", version),
        store=CACHE / "pairs",
        version=version,
        model=language(values),
        settings=values.utility,
        runtime=values.runtime,
        wanted=SELECTORS[values.selection.selector].reads == "utility",
        map=map,
    )


def make_scores(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Score rows, for selectors that sort by a score."""
    from tasks.scores.scores import write_scores

    return write_scores(
        examples=where("examples", version),
        out=where("scores", version),
        store=CACHE / "scores",
        version=version,
        model=language(values),
        settings=values.scores,
        runtime=values.runtime,
        selector=values.selection.selector,
        wanted=SELECTORS[values.selection.selector].reads == "scores",
        map=map,
    )


def make_gradients(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Score rows and parameters by gradients."""
    from tasks.gradients.gradients import write_gradients

    examples = where("examples", version)
    return write_gradients(
        examples=examples,
        out=where("gradients", version),
        scratch=CACHE / "warmup" / examples.name,  # of the same rows: trials that differ in selection share it
        store=CACHE / "gradients",
        version=version,
        model=language(values),
        settings=values.gradients,
        runtime=values.runtime,
        selector=values.selection.selector,
        mask_selector=values.mask.selector,
        map=map,
    )


def make_selection(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Choose rows and parameters."""
    from tasks.selection.selection import write_selection

    return write_selection(
        examples=where("examples", version),
        embedding=where("embedding", version),
        utility=where("utility", version),
        scores=where("scores", version),
        gradients=where("gradients", version),
        out=where("selection", version),
        version=version,
        model=language(values),
        settings=values.selection,
        mask=values.mask,
        map=map,
    )


def make_finetuning(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Train arms."""
    from tasks.finetuning.finetuning import write_finetuning

    out = where("finetuning", version)
    return write_finetuning(
        examples=where("examples", version),
        subset=where("selection", version),
        previous=where("finetuning", values.versions[version].previous),
        out=out,
        scratch=CACHE / "finetuning" / version if out == folder("finetuning", version) else out / "scratch",
        version=version,
        model=language(values),
        settings=values.finetuning,
        runtime=values.runtime,
        update_steps=values.mask.update_steps,
        gradients=values.gradients,
    )


def make_evaluation(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Measure arms."""
    from tasks.evaluation.evaluation import write_evaluation

    previous = values.versions[version].previous
    return write_evaluation(
        examples=where("examples", version),
        arms=where("finetuning", version),
        previous=previous,
        previous_examples=where("examples", previous),
        previous_arms=where("finetuning", previous),
        out=where("evaluation", version),
        version=version,
        model=language(values),
        embedding_model=encoder(values),
        settings=values.evaluation,
    )


def make_audit(values: Params, version: str, map: Map, where: Where = folder) -> Notes:
    """Check promises."""
    from tasks.audit.audit import write_audit

    source = values.versions[version]
    return write_audit(
        raw=Path(source.raw),
        examples=where("examples", version),
        previous_examples=where("examples", source.previous),
        utility=where("utility", version),
        selection=where("selection", version),
        evaluation=where("evaluation", version),
        out=where("audit", version),
        version=version,
        selection_settings=values.selection,
        mask=values.mask,
        settings=values.audit,
    )


def name_current(values: Params) -> set[str]:
    """Return the digests of the models and the code that the stores' figures are made with now."""
    from tasks import models
    from tasks.embedding import embedding
    from tasks.gradients import warmup
    from tasks.scores import scores
    from tasks.utility import utility

    codes = {utility.CODE, embedding.CODE, warmup.CODE, *(method.code for method in scores.METHODS.values())}
    return codes | {models.model_digest(language(values)), models.model_digest(encoder(values))}


def language(values: Params) -> Any:
    """Return the language model that the parameters name."""
    from tasks.models import ModelChoice

    chosen = values.models
    how = {"dtype": chosen.dtype, "max_tokens": chosen.max_tokens, "template": chosen.template}
    return ModelChoice(chosen.language, chosen.language_revision, chosen.device, **how)


def encoder(values: Params) -> Any:
    """Return the text encoder that the parameters name."""
    from tasks.models import ModelChoice

    chosen = values.models
    return ModelChoice(
        chosen.embedding,
        chosen.embedding_revision,
        chosen.device,
        dtype=chosen.dtype,
        max_tokens=values.embedding.max_tokens,
    )


STAGES: Mapping[str, Callable[..., Notes]] = {
    "examples": make_examples,
    "embedding": make_embedding,
    "utility": make_utility,
    "scores": make_scores,
    "gradients": make_gradients,
    "selection": make_selection,
    "finetuning": make_finetuning,
    "evaluation": make_evaluation,
    "audit": make_audit,
}
