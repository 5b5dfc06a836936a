"""One stage's estimate: its work and its seconds, and what its earlier run teaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.estimate import rates as kept
from tasks.estimate.rates import ENCODER, LANGUAGE, Models, Rates
from tasks.estimate.rows import Where, read_corpora
from tasks.estimate.stored import count_left
from tasks.estimate.work import Case, Work, count_stage, scale

FILE = "rates.json"


@dataclass(frozen=True)
class Planned:
    """What is known of a stage before it runs."""

    address: str
    whole: Work  # as if nothing were known
    left: Work  # without what the stores hold


def plan_stages(
    addresses: Sequence[str], values: Any, models: Models, *, where: Where, cache: Path, fresh: frozenset[str]
) -> dict[str, Planned]:
    """Return the work of stages, by address.

    Args:
        addresses: `utility@v1`.
        values: params.yaml as `flows.params` reads it.
        models: that it names.
        where: stage and version -> folder of its artifacts.
        cache: the root of the stores.
        fresh: addresses of all stages whose artifacts are of the current inputs.

    Raises:
        ValueError: raw files that cannot be read or divided; settings that cannot be kept.
    """
    versions = list(dict.fromkeys(address.partition("@")[2] for address in addresses))
    corpora = read_corpora(versions, values, models.language, where, fresh)
    found = {}
    for address in addresses:
        name, _, version = address.partition("@")
        before = corpora.get(values.versions[version].previous)
        vectors = where("embedding", version) / "embedding.parquet" if f"embedding@{version}" in fresh else None
        about = (version, values, corpora[version], before)
        case = Case(*about, model=models.language, encoder=models.encoder, cache=cache, vectors=vectors)
        whole = count_stage(name, case)
        found[address] = Planned(address, whole, whole if address in fresh else count_left(name, case, whole))
    return found


def name_kind(name: str, values: Any) -> str:
    """Return the name that a stage's rates are kept under: with what changes its cost per token.

    >>> from types import SimpleNamespace as Some
    >>> name_kind("finetuning", Some(finetuning=Some(method="lora")))
    'finetuning lora'
    """
    if name == "finetuning":
        return f"{name} {values.finetuning.method}"
    if name == "scores":
        return f"{name} {values.selection.selector}"
    return f"{name} {values.gradients.order}" if name == "gradients" else name


def share_done(planned: Planned, run: Mapping[str, Any]) -> float:
    """Return how much of a stage's whole work a run did, by what `run.json` says of it, in [0, 1]."""
    name, work = planned.address.partition("@")[0], planned.whole
    counts = {
        "embedding": (("texts_encoded",), work.texts),
        "utility": (("pairs_scored",), work.pairs),
        "scores": (("rows_scored",), work.rows),
        "gradients": (("rows_summed", "rows_scored", "rows_squared"), work.rows),
        "finetuning": (("arms_trained",), work.arms),
    }
    names, planned_count = counts.get(name, ((), 0))
    if not planned_count:
        return 1.0
    return min(1.0, sum(run.get(one, 0) for one in names) / planned_count)


def learn_runs(
    rates: Rates, planned: Mapping[str, Planned], runs: Mapping[str, Mapping[str, Any]], values: Any, models: Models
) -> Rates:
    """Return rates with what earlier runs on this machine took, the newest of each stage last.

    Args:
        rates: as known.
        planned: work of the stages, by address.
        runs: what `run.json` says of some of their last runs, by address; those known already teach nothing more.
        values: params.yaml as `flows.params` reads it.
        models: that it names.
    """
    for address, run in sorted(runs.items(), key=lambda one: one[1]["created"]):
        kind = name_kind(address.partition("@")[0], values)
        name = kept.name_stage(kind, models)
        work = scale(planned[address].whole, share_done(planned[address], run))
        before = rates.entries.get(name, {}).get("run") or ""
        seconds = kept.find(rates, kind, models)
        if run["created"] > before and not kept.lacks(work, seconds) - _alone(work, seconds):
            rates = kept.keep(rates, name, _learn(work, seconds, run["seconds"]), run["created"])
    return rates


def _alone(work: Work, seconds: Mapping[str, float]) -> set[str]:
    """Return the one unit that a run without any calibration teaches: where it is all that is unknown, but loading."""
    unknown = kept.lacks(work, seconds)
    return unknown if len(unknown - {"load"}) == 1 else set()


def _learn(work: Work, seconds: Mapping[str, float], took: float) -> dict[str, float]:
    unknown = kept.lacks(work, seconds)
    (unit,) = (unknown - {"load"}) or {None}
    if unit is None:
        return kept.learn(work, seconds, took)
    rest = took - kept.predict(work, {**seconds, **dict.fromkeys(unknown, 0.0)})
    each = max(rest, took / 2) / kept.count_units(work)[unit]
    return {**seconds, "load": seconds.get("load", 0.0), unit: each}


def find_gaps(rates: Rates, planned: Mapping[str, Planned], values: Any, models: Models) -> set[str]:
    """Return what is to be calibrated: `calibration`, `encoder`, both or neither."""
    unknown: set[str] = set()
    for address, one in planned.items():
        kind = name_kind(address.partition("@")[0], values)
        unknown |= kept.lacks(one.left, kept.find(rates, kind, models))
    return ({ENCODER} if "encoded" in unknown else set()) | ({LANGUAGE} if unknown - {"encoded"} else set())


def calibrate(rates: Rates, gaps: set[str], models: Models) -> Rates:
    """Return rates with the gaps filled by a calibration of a few seconds."""
    from tasks.estimate import calibration

    if LANGUAGE in gaps:
        name = kept.name_stage(LANGUAGE, models)
        rates = kept.keep(rates, name, calibration.calibrate_language(models.language))
    if ENCODER in gaps:
        rates = kept.keep(rates, kept.name_stage(ENCODER, models), calibration.calibrate_encoder(models.encoder))
    return rates


def predict(rates: Rates, planned: Planned, values: Any, models: Models) -> float:
    """Return the seconds that what is left of a stage will take."""
    kind = name_kind(planned.address.partition("@")[0], values)
    return kept.predict(planned.left, kept.find(rates, kind, models))
