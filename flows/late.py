"""What was changed while a run was at work, or in a way that DVC does not see; told at the end of the run."""

from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path

from flows import params
from flows.graph import dvc_state
from flows.graph.stages import Planned
from flows.stage_calls import CACHE, folder
from tasks.artifacts import tables
from tasks.artifacts.remembered import remember
from tasks.examples.files import list_contents, name_inputs

KNOWN = CACHE / "raw.json"  # digests of raw files


def tell_late(planned: Sequence[Planned]) -> Iterator[str]:
    """Yield a line for each stage that is not up to date any more, and for each raw file that is not what was read.

    Args:
        planned: the stages of a run that has just brought all of them up to date.
    """
    for address, state, why in dvc_state.standings(planned):
        if state not in ("fresh", "waits"):
            yield f"{address} is {state} again ({why}): something was edited while the run was at work; run again"
    yield from tell_edited(dict.fromkeys(one.version for one in planned))


def tell_edited(versions: Iterable[str]) -> Iterator[str]:
    """Yield a line for each raw file of some versions that is not what was read, though DVC does not see that."""
    for version in versions:
        for path in list_edited(version):
            yield (
                f"{path} is not the file that examples@{version} was made from, but as large and as old as it was, so "
                f"that DVC does not see it: `touch` it, and run again"
            )


def list_edited(version: str) -> list[Path]:
    """Return the raw files of a version whose content is not what its examples were made from."""
    made = folder("examples", version) / "examples.parquet"
    if not made.exists():
        return []
    read = tables.provenance(made)["inputs"]
    raw = params.load(Path("params.yaml"))["versions"][version]["raw"]
    found = [Path(raw)] if Path(raw).exists() else map(Path, glob(raw, recursive=True))
    paths = [path for one in found for path in list_contents(one)]
    named = name_inputs(Path(raw), paths)
    digests = remember(KNOWN, [path for name, path in named.items() if name in read], tables.digest)
    return [path for name, path in named.items() if name in read and digests[path] != read[name]]
