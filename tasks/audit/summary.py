"""What came of a version, for the end of a run: read from the stages' JSON files, without loading a model."""

from dataclasses import replace
from pathlib import Path

from tamis.evaluation.summary import Summary
from tamis.evaluation.summary import summarise as summarise_metrics
from tasks.artifacts import tables


def summarise(root: Path, version: str) -> Summary:
    """Return the held-out losses of a version's arms, how many pairs were scored, and what is worth a note.

    Raises:
        ArtifactError: the version was not evaluated yet.
    """
    names = {"evaluation": "metrics", "utility": "utility", "audit": "audit", "selection": "selection"}
    paths = {stage: Path(root) / f"data/{stage}/version={version}/{name}.json" for stage, name in names.items()}
    for stage in ("evaluation", "utility"):
        if not paths[stage].exists():
            raise tables.ArtifactError(f"{paths[stage]} is missing; run `tamis run` (or `dvc repro`) to make it")
    found = [tables.read_json(path) for path in paths.values()]
    summary, counts = summarise_metrics(*found), Path(root) / f"data/examples/version={version}/examples.json"
    gradients = Path(root) / f"data/gradients/version={version}/gradients.json"
    scores = tables.read_json(gradients).get("notes", [])
    left_out = tables.read_json(counts).get("rejects", 0)
    asked = f"tamis sql \"SELECT reason, count(*) FROM rejects WHERE version = '{version}' GROUP BY ALL\""
    told = [f"{left_out} raw rows were left out, each with its reason: {asked}"] if left_out else []
    return replace(summary, notes=[*summary.notes, *scores, *told])
