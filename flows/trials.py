"""Stages run apart from the project's artifacts, with other parameters, each once: what `tamis compare` is made of.

A trial lies in `.cache/trials/<stage>/<key>`; the key digests all that dvc.yaml says the stage depends on (code, files,
parameters) and the trials that it reads. So an interrupted comparison goes on where it was, and another one shares what
they have in common. The stores of scored pairs, vectors and scores are those of the project. A trial is concluded only
if nothing that it depends on was edited meanwhile.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flows.graph.stages import needs
from flows.params import Params
from flows.stage import fingerprint, in_order, named, refuse_edited, refuse_moved, say, take_halvings
from flows.stage_calls import CACHE, STAGES, find_artifacts, find_folders, find_warmup
from flows.told import tell_notes
from tasks.settings import VersionSettings

TRIALS = CACHE / "trials"
DONE = "done.json"
TOLD = {"seconds": (int, float), "resumed": bool, "notes": dict}  # what it says of a trial, and in what types
CHOICE = ("chosen_rows", "chosen_fraction", "objective", "objective_share", "pilot", "mask")  # read of a choice


@dataclass(frozen=True)
class Trial:
    """A stage that was run apart."""

    key: str  # digest of all that it depends on
    folder: Path  # its artifacts
    seconds: float  # that it took, in the attempt that finished it
    resumed: bool  # an earlier attempt was interrupted; its seconds are not counted
    notes: Mapping[str, Any]  # what the stage said


def attempt(
    name: str,
    version: str,
    values: Params,
    upstream: Mapping[str, Trial],
    loaded: Mapping[str, str],
    *,
    before: Mapping[str, Trial] | None = None,
) -> Trial:
    """Run a stage apart, unless that is done already.

    Args:
        name: the stage.
        version: the data version.
        values: the parameters, which may differ from params.yaml.
        upstream: trials by stage; what is not among them is read from the project's artifacts.
        loaded: the stages' sources when the process could first import them, of stage.sources.
        before: likewise, of the version that this one continues from.

    Raises:
        InputsChanged: a module was edited since, or something that the stage reads while it ran.
        ArtifactError: a folder stands where what is said of the trial belongs.
    """
    address, facts = f"{name}@{version}", describe(name, version, values, upstream, before)
    home = TRIALS / name / digest(facts)
    if (done := _read(home)) is not None:
        return done

    made = {name: home} | {stage: trial.folder for stage, trial in upstream.items()}
    here = find_artifacts(version, made)
    kept: dict[str, Any] = {"scratch": home / "scratch", "warmup": find_warmup(here.examples)}
    then = {stage: trial.folder for stage, trial in (before or {}).items()}
    earlier = find_artifacts(values.versions[version].previous, then)
    folders = replace(find_folders(values, version), here=here, before=earlier, **kept)

    refuse_edited(address, loaded)  # now, too: it may run for hours
    from tasks.artifacts.stores import in_use

    resumed = home.exists()
    home.mkdir(parents=True, exist_ok=True)
    with named(address), in_use(CACHE):
        start = time.monotonic()
        notes = _run(name, address, values, folders)
        seconds = time.monotonic() - start
    refuse_edited(address, loaded)
    refuse_moved(address, facts, describe(name, version, values, upstream, before))
    shutil.rmtree(home / "scratch", ignore_errors=True)
    code = digest_sources(name, values.versions)
    conclude(home / DONE, {"seconds": seconds, "resumed": resumed, "notes": notes, "code": code})
    for line in tell_notes(version, {"halved": notes["halved"]}):
        say(f"{address:<16} {line}")
    done = _read(home)
    assert done is not None, f"{home} was concluded just now"
    return done


def _run(name: str, address: str, values: Params, folders: Any) -> dict[str, Any]:
    """Run a stage and return what it said, with what memory made it halve."""
    take_halvings()  # of a stage that failed before in this process
    notes = STAGES[name](values, folders, partial(in_order, label=address)) or {}
    return {**notes, "halved": [vars(one) for one in take_halvings()]}


def find(name: str, version: str, values: Params, upstream: Mapping[str, Trial]) -> Trial | None:
    """Return a stage that was run apart before, with these parameters and all else as it is now; None: it was not.

    Args:
        name, version, values, upstream: as of `attempt`.
    """
    return _read(TRIALS / name / digest(describe(name, version, values, upstream)))


def _read(home: Path) -> Trial | None:
    """Return a trial that was concluded; None: none was, or what is said of it is damaged, and it is made again.

    Raises:
        ArtifactError: a folder stands where that belongs.
    """
    from tasks.artifacts.remembered import recall

    done = recall(home / DONE, TOLD)
    return done and Trial(home.name, home, **{name: done[name] for name in TOLD})


def read_choice(selection: Trial) -> dict[str, Any]:
    """Return what a trial of stage selection says of its choice.

    Raises:
        ArtifactError: it was damaged.
    """
    from tasks.artifacts.tables import read_json

    return read_json(selection.folder / "selection.json", CHOICE)


def digest_sources(name: str, versions: Mapping[str, VersionSettings]) -> str:
    """Return a digest of the modules that a stage stands on, as they are now."""
    version = next(iter(versions))
    files, _ = needs(f"{name}@{version}", versions=versions)
    found = fingerprint(f"{name}@{version}", versions)
    return digest({path: found[path] for path in files if path.endswith(".py")})


def conclude(path: Path, record: Mapping[str, Any]) -> None:
    """Write what a trial gave, whole or not at all."""
    from tasks.artifacts.tables import write_json

    write_json(record, path)


def describe(
    name: str,
    version: str,
    values: Params,
    upstream: Mapping[str, Trial],
    before: Mapping[str, Trial] | None = None,
) -> dict[str, Any]:
    """Return all that a trial depends on, by name."""
    address, previous = f"{name}@{version}", values.versions[version].previous
    files, keys = needs(address, versions=values.versions)
    found = fingerprint(address, values.versions)
    facts: dict[str, Any] = {"stage": name, "version": version, "previous": previous}
    for path in files:
        made = re.match(r"data/(\w+)/version=([^/]+)/", path)
        stage, trials = (made[1], {version: upstream, previous: before or {}}.get(made[2], {})) if made else ("", {})
        if stage in trials:
            facts[stage if made[2] == version else f"{stage} before"] = trials[stage].key
        else:
            facts[path] = found[path]
    return facts | {key: _value(values, key) for key in keys}


def digest(facts: Mapping[str, Any]) -> str:
    """Return a digest of facts by name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _value(values: Any, dotted: str) -> Any:
    """Return the value of a parameter that dvc.yaml names."""
    for part in dotted.split("."):
        values = values[part] if isinstance(values, Mapping) else getattr(values, part)
    return asdict(values) if is_dataclass(values) else values
