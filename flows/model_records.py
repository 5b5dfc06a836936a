"""The models as inputs: `data/models/<role>.json`, a small file per model, held by git, that stages depend on.

Beside them stands `environment.json`, which is empty unless `models.strict_environment` asks for what else decides a
result outside of our code: versions of libraries, the kind of device.

A record names the model, its files, and digests of their contents. Without it, weights that are replaced under the same
name would leave every stage fresh, and old adapters would be measured on new weights. Every `tamis` command that looks
at the graph writes it anew where it differs; a stage that `dvc repro` starts refuses to run where it does.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flows.environment import name_libraries
from tasks.artifacts.tables import write_json
from tasks.model_files import ModelError, describe

FOLDER = Path("data/models")
ROLES = {"language": "language_revision", "embedding": "embedding_revision"}  # setting of the name -> of the revision
ENVIRONMENT = "environment"
ALL = (*ROLES, ENVIRONMENT)


class ModelsChanged(ValueError):  # noqa: N818
    """A model is not the one that its record names."""


def place(role: str) -> Path:
    """Return the path of a model's record.

    >>> place("language").as_posix()
    'data/models/language.json'
    """
    return FOLDER / f"{role}.json"


def read(role: str) -> dict[str, Any] | None:
    """Return what is recorded of a model; None: nothing that can be read."""
    try:
        return dict(json.loads(place(role).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find_stale(models: Mapping[str, Any], roles: Iterable[str] = ALL) -> dict[str, dict[str, Any]]:
    """Return by role what should be recorded of the models whose record differs.

    Args:
        models: the settings, section `models` of params.yaml.
        roles: those that are looked at.

    Raises:
        ModelError: a model cannot be found.
    """
    found = {role: _describe(role, models) for role in roles}
    return {role: record for role, record in found.items() if record != read(role)}


def _describe(role: str, models: Mapping[str, Any]) -> dict[str, Any]:
    if role != ENVIRONMENT:
        return describe(models[role], models[ROLES[role]])
    if not models.get("strict_environment"):
        return {}
    from tasks.models import ModelChoice, device  # and torch with it

    kind = device(ModelChoice("any", device=models["device"])).type
    return {"libraries": name_libraries(), "device": kind}


def write(models: Mapping[str, Any]) -> list[str]:
    """Write the records that differ; returns their roles.

    The record of a model that is not on this machine stays: whoever only reads what was made does not need it.

    Raises:
        ModelError: a model cannot be found, and nothing is recorded of it.
    """
    stale: dict[str, dict[str, Any]] = {}
    for role in ALL:
        try:
            stale |= find_stale(models, [role])
        except ModelError:
            if read(role) is None:
                raise
    for role, record in stale.items():
        write_json(record, place(role))
    return list(stale)


def refuse_changed(models: Mapping[str, Any], read_by: Iterable[str]) -> None:
    """Raise ModelsChanged where a model differs from its record.

    Args:
        models: the settings, section `models` of params.yaml.
        read_by: the paths that a stage depends on; of these, records are looked at.
    """
    paths = set(read_by)
    for role, now in find_stale(models, [role for role in ALL if place(role).as_posix() in paths]).items():
        if role == ENVIRONMENT:
            raise ModelsChanged(
                f"libraries or device are not those that {place(role)} names, and models.strict_environment is true; "
                "`tamis models --update` takes them as they are, and every stage is made anew"
            )
        then = (read(role) or {}).get("digest") or "none"
        raise ModelsChanged(
            f"models.{role}, {models[role]}, is not the model that {place(role)} names (digest {then[:8]}, now "
            f"{now['digest'][:8]}); `tamis models --update` takes it as it is, and what depends on it is made anew"
        )
