"""Whether a version's model may be followed by the next one: gates that read validation rows, never held-out ones.

for the first chosen arm and the model that it continues from, on the validation rows of this version (`loss`) and of
the version before (`retention`):
    excess = mean over rows of (loss of the new model - loss of the old one)
    passed = excess <= what acceptance allows
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.evaluation.bootstrap import bootstrap_means, percentile_intervals
from tamis.examples.splits import VALIDATION
from tasks import models
from tasks.acceptance.settings import LEAST, AcceptanceSettings
from tasks.artifacts.tables import read_json
from tasks.evaluation.answers import answer_all, open_stores
from tasks.evaluation.inputs import read_held_out, read_runs
from tasks.folders import Folders

RESAMPLES, CONFIDENCE = 1000, 0.95  # of the intervals, which are told and decide nothing


@dataclass(frozen=True)
class Gate:
    """What a gate found."""

    name: str  # loss | retention | pilot
    passed: bool
    told: str
    figures: Mapping[str, Any]  # excess, low, high, limit, rows; or the pilot's decision


def pass_gates(folders: Folders, settings: AcceptanceSettings, *, model: models.ModelChoice) -> list[Gate]:
    """Return what the gates find that are set.

    Args:
        folders: examples, selection and arms of this version, and those of the version before; of the stores `losses`
            is used.
        settings: what is allowed.
        model: the base model.

    Raises:
        ArtifactError: an artifact is missing.
        EvaluationError: no validation rows, or a loss that is not finite.
    """
    limits = {name: limit for name in ("loss", "retention") if (limit := getattr(settings, name)) is not None}
    measured = measure_excess(folders, model) if limits else {}
    found = [judge(name, limit, measured.get(name)) for name, limit in limits.items()]
    return [*found, *_ask_pilot(folders, settings)]


def measure_excess(folders: Folders, model: models.ModelChoice) -> dict[str, np.ndarray]:
    """Return by how much the new model's loss exceeds the old one's on each validation row, nats per token.

    Keys: `loss`, rows of this version; `retention`, of the version before, where it has such rows and a model.
    """
    here, before = folders.here, folders.before
    examples = {here.version: here.examples, before.version: before.examples}
    asked = read_held_out(examples, model, VALIDATION)
    old, new = _choose_runs(read_runs(here.finetuning, before.finetuning))
    answers = answer_all([old, new], asked, {here.version: []}, open_stores(folders.cache, model, 0))
    was, now = (np.array(each.losses) for each in answers)
    names = {here.version: "loss", before.version: "retention"}
    return {names[version]: (now - was)[places] for version, places in asked.of.items() if places}


def judge(name: str, limit: float, excess: np.ndarray | None) -> Gate:
    """Return whether a mean is within a limit, with an interval from rows drawn anew.

    Args:
        name: of the gate.
        limit: nats per token.
        excess: by row; None: there is no such row, and the gate is open.

    >>> judge("loss", 0.1, np.array([0.3, 0.1])).told
    'loss, on 2 validation rows, less that of the model before is +0.2000 (+0.1000 to +0.3000); at most +0.1 is allowed'
    """
    if excess is None:
        return Gate(name, True, f"{name}: no row to compare on", {"limit": limit})
    mean = float(excess.mean())
    means = bootstrap_means(excess[:, None], RESAMPLES, np.random.default_rng(0))
    ((low, high),) = percentile_intervals(means, CONFIDENCE)
    figures = {"excess": mean, "low": float(low), "high": float(high), "limit": limit, "rows": len(excess)}
    told = (
        f"{name}, on {len(excess)} validation rows, less that of the model before is {mean:+.4f} ({low:+.4f} to "
        f"{high:+.4f}); at most {limit:+g} is allowed"
    )
    return Gate(name, mean <= limit, told, figures)


def _choose_runs(runs: list[Any]) -> tuple[Any, Any]:
    """Return the model that training started from, and the first chosen arm, from which the next version goes on."""
    old = next((run for run in runs if run.arm == "previous"), runs[0])
    return old, next(run for run in runs if run.arm == "chosen")


def _ask_pilot(folders: Folders, settings: AcceptanceSettings) -> Iterator[Gate]:
    """Yield what the pilot of the selection says, where there was one."""
    path = folders.here.selection / "selection.json"
    pilot = read_json(path).get("pilot")
    if pilot:
        decision = pilot["decision"]
        told = f"pilot: {pilot['why']}; asked is {settings.pilot} at least"
        yield Gate("pilot", decision in LEAST[settings.pilot], told, {"decision": decision, "least": settings.pilot})
