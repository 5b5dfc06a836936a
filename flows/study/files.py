"""The files of studies, with what one takes over from another."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import params
from tasks.settings import hint, spell

STUDIES = Path("studies")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what folders and files of results are called after


class StudyError(ValueError):
    """A study cannot be run as its file says."""


def load_study(name: str, *, above: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a study's file says, with what it takes over from the study that it is `like`.

    Args:
        name: of the study.
        above: the studies that are like it.

    Raises:
        StudyError: there is no such study; it names a pool that the other one lacks; it is like itself.
    """
    path = STUDIES / f"{name}.yaml"
    if not NAME.fullmatch(name) or not path.exists():
        known = sorted(one.stem for one in STUDIES.glob("*.yaml"))
        raise StudyError(f"there is no study {name!r}{hint(name, known)}; known: {', '.join(known) or 'none'}")
    own = params.load(path)
    if "like" not in own:
        return own
    like = own.pop("like")
    if not isinstance(like, str):
        raise StudyError(f"{path} is like {like!r}; name one study, such as `like: core`, or leave it out")
    if like in (name, *above):
        raise StudyError(f"{path} is like {like}, which is like it; let one of them say all of itself")
    whole = load_study(like, above=(name, *above))
    theirs, ours = (_read_pairs(said, "pools", said_by) for said, said_by in ((whole, like), (own, name)))
    for pool in ours:
        if pool not in theirs:
            near = hint(pool, theirs)
            raise StudyError(f"{path} names a pool {pool!r}{near} that study {like} lacks; known: {', '.join(theirs)}")
    pools = {pool: theirs[pool] | said for pool, said in ours.items()}
    layers = _read_pairs(whole, "params", like)
    for section, said in _read_pairs(own, "params", name).items():
        layers[section] = layers.get(section, {}) | said
    return {**whole, "beside": [], **own, "pools": pools or theirs, "params": layers}


def _read_pairs(said: Mapping[str, Any], key: str, name: str) -> dict[str, dict[str, Any]]:
    """Return what a study's file says of pools or params, where it has the form for it.

    Raises:
        StudyError: it has not.
    """
    found = said.get(key, {})
    if not isinstance(found, Mapping) or not all(isinstance(one, Mapping | None) for one in found.values()):
        raise StudyError(
            f"{STUDIES / name}.yaml: {key} is {spell(found)}; it must be names, each with `name: value` pairs of its "
            "own"
        )
    return {one: dict(pairs or {}) for one, pairs in found.items()}
