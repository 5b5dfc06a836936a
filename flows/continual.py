"""Continual tuning: every data version that is not recorded yet, in order.

for each version without a git tag, what it continues from before it:
    refuse what the tag could not name -> run the version's stages -> commit what they made, tag it -> push
"""

from flows import drive, engines, params
from flows.graph.versions import RecordError, push, refuse_rewritten, refuse_uncommitted, tag_of, unrecorded, write
from flows.stage import say


def advance(*, engine: str = "prefect", runner: str = "threads", workers: int = 1) -> list[str]:
    """Run and record every data version that is not recorded yet, in order; returns them.

    Interrupted anywhere, the next call goes on: stages that were made are fresh, and what is left is done.

    Args:
        engine: `prefect` or `local`.
        runner: of prefect, what runs the shards: `threads` or `dask`.
        workers: how many shards run at once.

    Raises:
        StateError: the project is not under git.
        RecordError: the raw data of a recorded version have changed; a tracked file has changes that are not committed;
            or DVC's remote did not take the artifacts, after all versions were recorded.
    """
    versions = params.read_versions()
    waiting = unrecorded(versions)
    refuse_rewritten(versions)
    if not waiting:
        say(f"every data version is recorded: {', '.join(versions)}")
    failure = _push()
    for version in waiting:
        refuse_uncommitted(version)
        engines.run(engine, [version], runner=runner, workers=workers)
        with drive.alone():
            write(version)
        say(f"{version} is recorded: tag {tag_of(version)}")
        failure = _push()
    if failure:
        raise failure
    return waiting


def _push() -> RecordError | None:
    """Push, and say what came of it; returns the failure, which must not keep later versions from being made."""
    try:
        came = push()
    except RecordError as error:
        say(f"not pushed: {error}")
        return error
    if came:
        say(came)
    return None
