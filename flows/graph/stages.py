"""dvc.yaml resolved: the stages of every data version, what each reads and writes, and in which order they come.

`dvc.yaml` is written once, for all versions. DVC reads a copy of it per version (flows/graph/dvc_files.py), so that
what is recorded of one version stands in a file of its own; here the same text is resolved without DVC, for any number
of versions at once.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows import params
from tasks.settings import VersionSettings, hint

GRAPH, PARAMS = "dvc.yaml", "params.yaml"
COPIED = "copied"  # of dvc.yaml: the versions that its stages are for


@dataclass(frozen=True)
class Planned:
    """A stage of the graph."""

    address: str  # name and version, `utility@v1`
    command: str  # what `dvc repro` runs
    upstream: tuple[str, ...]  # addresses of the stages whose artifacts it reads
    inputs: tuple[str, ...]  # paths that it reads
    parameters: tuple[str, ...]  # dotted names in params.yaml
    outputs: tuple[str, ...]  # paths of its artifacts
    held: tuple[str, ...]  # those of them that git holds, and not DVC's cache: metrics
    about: str  # its description

    @property
    def version(self) -> str:
        """Return its data version."""
        return self.address.partition("@")[2]


def read_stages(root: Path = Path(".")) -> dict[str, dict[str, Any]]:
    """Return what dvc.yaml says of the stages that there are for every version, by name.

    Raises:
        ParamsError: it cannot be read, or has no stages for versions.
    """
    stages = params.load(root / GRAPH).get("stages") or {}
    found = {name: one for name, one in stages.items() if one.get("foreach") == f"${{{COPIED}}}"}
    if not found:
        raise params.ParamsError(
            f"{GRAPH} has no stage `foreach: ${{{COPIED}}}`, so no version has any; `git checkout {GRAPH}` brings the "
            "last one back"
        )
    return found


def read_graph(root: Path = Path(".")) -> dict[str, Planned]:
    """Return all stages by their addresses, version after version as params.yaml lists them.

    Args:
        root: the folder that holds dvc.yaml and params.yaml.

    Raises:
        ParamsError: a file cannot be read, or dvc.yaml names what params.yaml has not.
    """
    raw, stages = params.load(root / PARAMS), read_stages(root)
    return _link(
        {
            f"{name}@{key}": _resolve(f"{name}@{key}", entry["do"], {**raw, "key": key, "item": item})
            for key, item in (raw["versions"] or {}).items()
            for name, entry in stages.items()
        }
    )


def needs(
    address: str, root: Path = Path("."), versions: Mapping[str, VersionSettings] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Return the files that a stage depends on and the values of its parameters, by dvc.yaml's own lists.

    Args:
        address: name and version, `utility@v1`.
        root: the folder that holds dvc.yaml and params.yaml.
        versions: data versions; None: those of params.yaml.

    Raises:
        ParamsError: there is no such stage.
    """
    raw, stages = params.load(root / PARAMS), read_stages(root)
    name, _, key = address.partition("@")
    known = raw["versions"] if versions is None else {one: vars(version) for one, version in versions.items()}
    if name not in stages or key not in known:
        listed = [f"{stage}@{version}" for version in known for stage in stages]
        raise params.ParamsError(f"there is no stage {address}{hint(address, listed)}; known: {', '.join(listed)}")
    found = _resolve(address, stages[name]["do"], {**raw, "key": key, "item": known[key]})
    return list(found.inputs), {dotted: params.find(raw, dotted) for dotted in found.parameters}


def in_order(addresses: Iterable[str], edges: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield addresses and all that they need, each once and after what it needs, in the given order otherwise.

    >>> list(in_order(["c", "a"], {"c": ["a", "b"], "b": ["a"]}))
    ['a', 'b', 'c']
    """
    seen: set[str] = set()
    for address in addresses:
        waiting = [(address, iter(edges.get(address, ())))] if address not in seen else []
        seen.add(address)
        while waiting:  # not by recursion: a chain of versions may be long
            one, left = waiting[-1]
            needed = next((needed for needed in left if needed not in seen), None)
            if needed is None:
                waiting.pop()
                yield one
            else:
                seen.add(needed)
                waiting.append((needed, iter(edges.get(needed, ()))))


def end_versions(plan: Sequence[Planned]) -> dict[str, tuple[str, list[str]]]:
    """Return by the last stage of each version the version and all stages of it that are planned."""
    stages: dict[str, list[str]] = {}
    for planned in plan:
        stages.setdefault(planned.version, []).append(planned.address)
    return {own[-1]: (version, own) for version, own in stages.items()}


def read_of_others(graph: Mapping[str, Planned], chosen: Container[str]) -> dict[str, set[str]]:
    """Return the artifacts that the stages of some versions read of other ones, by the stages that made them."""
    found: dict[str, set[str]] = {}
    for one in graph.values():
        for address in one.upstream if one.version in chosen else ():
            if graph[address].version not in chosen:
                read = {path for path in graph[address].outputs if path in one.inputs}
                found.setdefault(address, set()).update(read)
    return found


def _resolve(address: str, entry: Mapping[str, Any], context: Mapping[str, Any]) -> Planned:
    """Return a stage of dvc.yaml with its templates filled, as yet without its upstream."""

    def fill(text: str) -> str:
        if "${" not in text:
            return text
        return re.sub(r"\$\{([\w.]+)\}", lambda found: str(params.find(context, found[1])), text)

    outputs: dict[str, bool] = {}  # path -> whether DVC's cache holds it
    for kind in ("outs", "metrics", "plots"):
        for one in entry.get(kind, ()):
            path, how = next(iter(one.items())) if isinstance(one, dict) else (one, {})
            outputs[fill(path)] = (how or {}).get("cache", True)
    return Planned(
        address,
        fill(entry["cmd"]),
        (),
        tuple(map(fill, entry.get("deps", ()))),
        tuple(map(fill, entry.get("params", ()))),
        tuple(outputs),
        tuple(path for path, cached in outputs.items() if not cached),
        fill(entry.get("desc", "")),
    )


def _link(stages: Mapping[str, Planned]) -> dict[str, Planned]:
    """Return stages with the addresses of those whose artifacts they read."""
    makers = {path: address for address, one in stages.items() for path in one.outputs}
    read = {path for one in stages.values() for path in one.inputs}  # most by the stages of every version
    made_by = {path: tuple(_made_by(path, makers)) for path in read}
    return {
        address: replace(one, upstream=tuple(sorted({maker for path in one.inputs for maker in made_by[path]})))
        for address, one in stages.items()
    }


def _made_by(path: str, makers: Mapping[str, str]) -> Iterator[str]:
    """Yield the stage that makes a path, and those that make a folder which it lies in."""
    while path:
        if path in makers:
            yield makers[path]
        path = path.rpartition("/")[0]
