"""What Prefect's own page shows of a stage: its result in numbers, its artifacts, and a link to the desk's page."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import PrefectException

from flows.graph.dvc_state import File
from flows.graph.stages import Planned
from flows.serving_desk import ADDRESS, PORT
from flows.stage import say
from tasks.artifacts.tables import read_json

PAGES = {  # stage -> page of the desk that shows what it made
    "examples": "chain",
    "embedding": "map",
    "utility": "pairs",
    "gradients": "mask",
    "selection": "gains",
    "evaluation": "overview",
    "audit": "sign-off",
}
NUMBERS = {  # stage -> its file of figures, and what is told of it
    "examples": ("examples.json", ("rows", "rejects", "distinct", "duplicates")),
    "selection": ("selection.json", ("selector", "pool_rows", "chosen_rows", "objective", "objective_share")),
    "audit": ("audit.json", ("promises_kept",)),
}
EVALUATION = "metrics.json"


def publish(planned: Planned, how: str, files: Iterable[File]) -> None:
    """Publish what became of a stage as an artifact of its task run; where Prefect does not take it, that is said."""
    key = re.sub(r"[^a-z0-9]+", "-", planned.address.lower()).strip("-")
    text = describe(planned, how, files)
    try:
        create_markdown_artifact(text, key=key, description=f"{planned.address}, {how}")
    except (httpx.HTTPError, PrefectException) as error:
        say(f"{planned.address}: Prefect's page does not show its result ({type(error).__name__}: {error})")


def describe(planned: Planned, how: str, files: Iterable[File]) -> str:
    """Return a stage's result as Markdown: no text of data, names and numbers alone."""
    name, version = planned.address.split("@")
    lines = [f"`{planned.address}` was {how}: {planned.about}.", ""]
    figures = [f"| {one} | {_write(value)} |" for one, value in read_figures(name, version).items()]
    lines += ["| figure | value |", "|---|---|", *figures, ""] if figures else []
    lines += ["| artifact | bytes | digest |", "|---|---|---|"]
    lines += [f"| `{file.path}` | {file.size:,} | `{file.digest}` |" for file in files]
    link = f"http://{ADDRESS}:{PORT}/?page={PAGES.get(name, 'rows')}&version={version}"
    return "\n".join([*lines, "", f"While `tamis desk` runs: [{link}]({link})", ""])


def read_figures(name: str, version: str) -> dict[str, Any]:
    """Return what a stage's file of figures says that is worth a line; empty where it has none."""
    folder = Path(f"data/{name}/version={version}")
    if name == "evaluation":
        metrics = read_json(folder / EVALUATION)
        losses = {f"loss of {arm}": one.get("loss") for arm, one in metrics.get("arms", {}).items()}
        gain = metrics.get("differences", {}).get("chosen-random", {})
        return losses | {f"chosen - random, {part}": gain[part] for part in ("loss", "low", "high") if part in gain}
    file, wanted = NUMBERS.get(name, ("", ()))
    found = read_json(folder / file) if file else {}
    return {one: found[one] for one in wanted if found.get(one) is not None}


def _write(value: Any) -> str:
    """Return a figure as text.

    >>> _write(1234), _write(0.123456), _write("delift")
    ('1,234', '0.1235', 'delift')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
