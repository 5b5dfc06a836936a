"""The two ways to run the stages: as a Prefect flow, or in this process alone, without a server."""

from collections.abc import Sequence
from typing import Literal

from flows import drive
from flows.drive import Outcome, Tell

Engine = Literal["prefect", "local"]


def run(
    engine: Engine, versions: Sequence[str], *, runner: str = "threads", workers: int = 1, tell: Tell | None = None
) -> list[Outcome]:
    """Bring some data versions up to date.

    Args:
        engine: `prefect`, or `local`, which needs no server and shows nothing on Prefect's page.
        versions: names from params.yaml; all, where none is named.
        runner: of prefect, what runs the shards: `threads` or `dask`.
        workers: how many shards run at once.
        tell: is given each version with its stages once all of these are up to date.
    """
    if engine == "local":
        return drive.run(versions, workers=workers, tell=tell)
    from flows import pipeline  # and Prefect with it, which takes seconds to start

    return pipeline.run(versions, runner=runner, workers=workers, tell=tell)
