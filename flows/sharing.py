"""One share of a stage's work, computed by a process of its own: `tamis shard STAGE VERSION K/N`.

A batch system starts N such processes, on machines that see one project folder. They fill the stores, which the next
run finds complete; none of them writes an artifact or records anything. A stage of several steps, where one reads what
all shares of the one before made, says what is left, and is started again.
"""

import os
import re
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from flows import model_records, params
from flows.drive import on_threads
from flows.graph import dvc_files, dvc_state
from flows.graph.stages import needs
from flows.mirror import mirrored
from flows.stage import named, say, take_halvings
from flows.stage_calls import CACHE, STAGES, find_folders, name_models
from flows.told import tell_notes
from tasks.settings import hint
from tasks.shares import Share, Unfinished

PREFIX = f".share-{socket.gethostname()}-"  # of folders for what a share writes and nobody reads
SHARED = ("utility", "scores", "gradients")  # stages whose work is kept in stores as it goes


class ShareError(ValueError):
    """A share of a stage cannot be computed."""


def run(stage: str, version: str, share: str, *, workers: str) -> tuple[bool, str]:
    """Compute a share of a stage.

    Args:
        stage: one of SHARED.
        version: the data version.
        share: which of how many, `3/8`.
        workers: as of a run.

    Returns:
        Whether the stage has nothing left to compute, and what is left to the other shares, in words.

    Raises:
        ShareError: the stage has no shares; no such share; what the stage reads is not up to date.
        ParamsError: there is no such version.
        ModelsChanged: a model is not the one that is recorded.
    """
    number, of = read_share(share)
    if stage not in SHARED:
        raise ShareError(f"{stage!r} is no stage with shares{hint(stage, SHARED)}; they are {', '.join(SHARED)}")
    address, values = f"{stage}@{version}", params.read()
    model_records.refuse_changed(vars(values.models), needs(address)[0])
    refuse_stale(address)
    from tasks.artifacts.stores import in_use

    mirror = mirrored(values.mirror.url, stage, partial(name_models, values), say)
    clear_left()
    home = tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{PREFIX}{os.getpid()}-")
    with named(address), in_use(CACHE), home as unread:
        folders = find_folders(values, version)
        folders = replace(folders, here=replace(folders.here, **{stage: Path(unread)}))
        with on_threads(workers) as shards, mirror as through:
            map = through(partial(shards, label=f"{address} {share}"))
            try:
                STAGES[stage](values, folders, Share(map, number, of))
            except Unfinished as left:
                say(f"{address}, share {share}: {left}; when all have ended, start those again that are not whole")
                return False, str(left)
            finally:
                for line in tell_notes(version, {"halved": [vars(one) for one in take_halvings()]}):
                    say(f"{address}, share {share}: {line}")
    say(f"{address} is whole: `tamis run {version}` finds all of it computed")
    return True, ""


def clear_left() -> None:
    """Remove what killed shares of this machine left."""
    for path in CACHE.glob(f"{PREFIX}*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.name.removeprefix(PREFIX).partition("-")[0]), 0)
            continue
        shutil.rmtree(path, ignore_errors=True)


def read_share(text: str) -> tuple[int, int]:
    """Return which of how many shares is meant.

    >>> read_share("3/8")
    (3, 8)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise ShareError(f"{text!r} is no share; give which of how many, from 1/8 to 8/8 where there are eight")
    return number, of


def refuse_stale(address: str) -> None:
    """Raise ShareError where something that a stage reads is not up to date, naming what makes it so."""
    version = address.partition("@")[2]
    planned = {one.address: one for one in dvc_state.plan([version])}
    standings = {upstream: state for upstream, state, _ in dvc_state.standings(planned.values())}
    reads = planned[address].upstream  # what is of a version before, and not planned, stands as it was recorded
    stale = [one for one, state in standings.items() if one in reads and state != "fresh"]
    if stale:
        targets = " ".join(f"{dvc_files.place(version)}:{upstream}" for upstream in stale)
        raise ShareError(
            f"{stale[0]}, which {address} reads, is {standings[stale[0]]}; make it first, on one machine: "
            f"`dvc repro {targets}`"
        )
