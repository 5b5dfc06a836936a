"""The stages, called: each one's function with what params.yaml gives it, and the folders that it reads and writes.

Modules are imported when they are called: a process that runs one stage loads nothing of the others.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from flows.params import Params
from tasks.folders import Artifacts, Folders
from tasks.gradients.settings import follow_training
from tasks.selection.selectors import GATES, leave_unread, list_read, read_only, reads_vectors

DATA = Path("data")
RAW = DATA / "raw"
ERASED = DATA / "erased.json"
CACHE = Path(".cache")
SCORING = ("embedding", "utility", "scores", "gradients")  # stages whose cost is that of the choice

T = TypeVar("T")
R = TypeVar("R")
Notes = Mapping[str, Any] | None  # what a stage says of this one run
Map = Callable[[Callable[[T], R], Sequence[T]], Iterator[R]]


def folder(name: str, version: str) -> Path:
    """Return the folder of a stage's artifacts.

    >>> folder("utility", "v1").as_posix()
    'data/utility/version=v1'
    """
    return DATA / name / f"version={version}"


def find_record(version: str) -> Path:
    """Return the file that says what a version's raw files were when it was added.

    >>> find_record("v2").as_posix()
    'data/raw/v2.files.json'
    """
    return RAW / f"{version}.files.json"


def find_artifacts(version: str, elsewhere: Mapping[str, Path] | None = None) -> Artifacts:
    """Return the folders of a version's artifacts, but for those of some stages that lie elsewhere."""
    return Artifacts(version, **{name: folder(name, version) for name in STAGES} | dict(elsewhere or {}))


def find_folders(values: Params, version: str) -> Folders:
    """Return where the stages of a version find what they read, and put what they write."""
    source = values.versions[version]
    here, before = find_artifacts(version), find_artifacts(source.previous)
    scratch = {"scratch": CACHE / "finetuning" / version, "warmup": find_warmup(here.examples)}
    return Folders(here, before, Path(source.raw), CACHE, **scratch)


def find_warmup(examples: Path) -> Path:
    """Return where gradients keeps tensors of an examples artifact: trials that differ in selection share them."""
    return CACHE / "warmup" / examples.name


def make_examples(values: Params, folders: Folders, map: Map) -> Notes:
    """Read raw rows, and tell which files are not what they were when they were added."""
    from tasks.examples.examples import write_examples
    from tasks.first_look.kept_files import list_differences

    asked = {"settings": values.examples, "held_out_share": values.audit.held_out_share, "erased": ERASED}
    asked["decisions"] = _find_decisions(folders.here.version)
    notes = write_examples(folders, model=language(values), **asked)
    return {**(notes or {}), "files_moved": list_differences(folders.raw, find_record(folders.here.version))}


def refuse_early(values: Params, folders: Folders) -> None:
    """Refuse a choice that the pool cannot keep before hours are spent on scores for it.

    Raises:
        BudgetError: as of stage selection.
    """
    from tasks.selection.selection import refuse_budget

    source = folders.here.examples / "examples.parquet"
    refuse_budget(source, values.selection, _find_decisions(folders.here.version))


def make_embedding(values: Params, folders: Folders, map: Map) -> Notes:
    """Encode texts."""
    from tasks.embedding.embedding import write_embedding
    from tasks.utility.settings import name_kernel

    chosen = values.selection
    kernel = name_kernel(chosen.selector, values.utility)
    return write_embedding(
        folders,
        model=encoder(values),
        settings=values.embedding,
        runtime=values.runtime,
        wanted=reads_vectors(chosen.selector, chosen.gate, chosen.quality, kernel),
        agreement=gates_by(values, "embedding"),
    )


def gates_by(values: Params, stage: str) -> bool:
    """Return whether a gate asks a stage for scores of rows."""
    gate = values.selection.gate
    return gate is not None and GATES[gate["by"]] == stage


def make_utility(values: Params, folders: Folders, map: Map) -> Notes:
    """Score pairs."""
    from tasks.utility.settings import name_kernel
    from tasks.utility.utility import write_utility

    chosen, selector = values.selection, values.selection.selector
    return write_utility(
        folders,
        model=language(values),
        settings=leave_unread(values.utility, selector, chosen.gate, chosen.quality),
        runtime=values.runtime,
        wanted="utility" in list_read(selector, chosen.gate, chosen.quality),
        kernel=name_kernel(selector, values.utility),
        quality=read_only(selector, chosen.gate, chosen.quality),
        map=map,
    )


def make_scores(values: Params, folders: Folders, map: Map) -> Notes:
    """Score rows, for selectors that sort by a score."""
    from tasks.scores.scores import write_scores

    selector = values.selection.selector
    return write_scores(
        folders,
        model=language(values),
        settings=values.scores,
        runtime=values.runtime,
        selector=selector,
        wanted="scores" in list_read(selector, None),
        gate=gates_by(values, "scores"),
        map=map,
    )


def make_gradients(values: Params, folders: Folders, map: Map) -> Notes:
    """Score rows and parameters by gradients."""
    from tasks.gradients.gradients import write_gradients

    return write_gradients(
        folders,
        model=language(values),
        settings=follow_training(values.gradients, values.finetuning.learning_rate),
        runtime=values.runtime,
        loss_per=values.finetuning.loss_per,
        selector=values.selection.selector,
        mask_selector=values.mask.selector,
        map=map,
    )


def make_selection(values: Params, folders: Folders, map: Map) -> Notes:
    """Choose rows and parameters."""
    from tasks.selection.selection import write_selection

    piloted = {}
    if values.selection.pilot is not None:
        from tasks.selection.pilot import Training

        how = {field.name: getattr(values.finetuning, field.name) for field in fields(Training)}
        piloted = {"training": Training(**how), "runtime": values.runtime}
    return write_selection(
        folders,
        model=language(values),
        settings=values.selection,
        diagonal=values.utility.diagonal,
        mask=values.mask,
        decisions=_find_decisions(folders.here.version),
        map=map,
        **piloted,
    )


def make_finetuning(values: Params, folders: Folders, map: Map) -> Notes:
    """Train arms, once it is known that their answers can be judged."""
    from tasks.finetuning.finetuning import write_finetuning

    if values.evaluation.task_metric != "none":
        from tasks.artifacts.row_sets import read_set
        from tasks.evaluation.task_metrics import refuse_unjudged

        held_out = read_set(folders.here.examples / "examples.parquet", "held_out")
        refuse_unjudged(held_out.to_pylist(), values.evaluation.task_metric)
    return write_finetuning(
        folders,
        model=language(values),
        settings=values.finetuning,
        runtime=values.runtime,
        update_steps=values.mask.update_steps,
        gradients=follow_training(values.gradients, values.finetuning.learning_rate),
    )


def make_evaluation(values: Params, folders: Folders, map: Map) -> Notes:
    """Measure arms."""
    from tasks.evaluation.evaluation import write_evaluation

    models = {"model": language(values), "embedding_model": encoder(values)}
    return write_evaluation(folders, **models, settings=values.evaluation)


def make_audit(values: Params, folders: Folders, map: Map) -> Notes:
    """Check promises."""
    from tasks.audit.audit import write_audit

    return write_audit(folders, **ask_audit(values, folders.here.version))


def ask_audit(values: Params, version: str) -> dict[str, Any]:
    """Return what the checks hold a version's artifacts against."""
    asked = {"selection_settings": values.selection, "mask": values.mask, "settings": values.audit}
    return asked | {"decisions": _find_decisions(version)}


def _find_decisions(version: str) -> Path:
    from tasks.decisions import find_decisions  # a stage's own module is imported first

    return find_decisions(Path("."), version)


def name_current(values: Params) -> set[str]:
    """Return the digests of the models and the code that the stores' figures are made with now."""
    from tasks.embedding import embedding
    from tasks.evaluation import networks, texts
    from tasks.gradients import warmup
    from tasks.scores import scores
    from tasks.utility import utility

    codes = {module.CODE for module in (utility, embedding, warmup, networks, texts)}
    codes |= {method.code for method in scores.METHODS.values()}
    return codes | name_models(values)


def name_models(values: Params) -> set[str]:
    """Return the digests of the models that the parameters name."""
    from tasks import models

    return {models.model_digest(language(values)), models.model_digest(encoder(values))}


def language(values: Params) -> Any:
    """Return the language model that the parameters name."""
    from tasks.models import ModelChoice

    chosen = values.models
    return ModelChoice(
        chosen.language,
        chosen.language_revision,
        chosen.device,
        dtype=chosen.dtype,
        matmul=chosen.matmul,
        max_tokens=chosen.max_tokens,
        template=chosen.template,
        template_arguments=json.dumps(dict(chosen.template_arguments), sort_keys=True),
        chat_template=chosen.chat_template,
    )


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
