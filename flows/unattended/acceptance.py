"""The gates of a version, asked between its training and its evaluation, and what they said, beside its lock file."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flows import params
from flows.graph import dvc_files
from flows.stage import say
from flows.stage_calls import find_folders, language
from tasks.acceptance.settings import AcceptanceSettings
from tasks.artifacts.tables import write_json

NAME = "acceptance.json"


class RefusedError(ValueError):
    """A version did not pass its gates, or continues from one that did not."""


def read_settings() -> AcceptanceSettings:
    """Return what params.yaml says of acceptance, whatever its other sections hold."""
    asked = params.load(Path("params.yaml")).get("acceptance") or {}
    return params.check_section(AcceptanceSettings, asked, "acceptance")


def place(version: str) -> Path:
    """Return the file that holds what a version's gates said.

    >>> place("v2").as_posix()
    'versions/v2/acceptance.json'
    """
    return dvc_files.place(version).with_name(NAME)


def decide(version: str) -> dict[str, Any]:
    """Ask the gates that are set, on validation rows, and write what they said; none is set: nothing is written.

    Raises:
        ArtifactError: the version is not trained.
        EvaluationError: it has no validation rows.
    """
    if not is_asked(read_settings()):
        return {"version": version, "accepted": True, "gates": []}
    from tasks.acceptance.acceptance import pass_gates  # seconds to import

    values = params.read()
    gates = pass_gates(find_folders(values, version), values.acceptance, model=language(values))
    for gate in gates:
        say(f"{'acceptance@' + version:<16} {'passed' if gate.passed else 'REFUSED'}: {gate.told}")
    accepted = all(gate.passed for gate in gates)
    found = {"version": version, "accepted": accepted, "gates": [asdict(gate) for gate in gates]}
    write_json(found, place(version))
    return found


def is_asked(settings: AcceptanceSettings) -> bool:
    """Return whether any gate is set."""
    return replace(settings, report=None, approval=False) != AcceptanceSettings()


def tell_waiting(version: str, previous: str) -> str | None:
    """Return for what a version waits: a person's approval of the one that it continues from; None: for nothing."""
    if not read_settings().approval or previous == params.BASE:
        return None
    from flows.approving import find_signed

    signed = find_signed(previous)
    if signed.state == "approved":
        return None
    other = f" ({len(signed.changed)} artifacts are other ones since)" if signed.changed else ""
    return f"{version} waits: {previous} is {signed.state}{other}; look at it and `tamis approve {previous}`"


def tell(found: dict[str, Any]) -> str:
    """Return in a line why a version was refused.

    >>> tell({"version": "v2", "gates": [{"passed": False, "told": "loss is 1 above"}, {"passed": True, "told": "x"}]})
    'v2 is refused: loss is 1 above'
    """
    return f"{found['version']} is refused: {'; '.join(gate['told'] for gate in found['gates'] if not gate['passed'])}"
