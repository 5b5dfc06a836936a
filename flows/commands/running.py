"""Commands that bring the stages up to date: `tamis run`, `tamis shard`, `tamis continue`, `tamis serve`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from flows import interrupts, params
from flows.commands.errors import spoken
from flows.commands.output import Json, plain, show_json, show_rows, show_text
from flows.stage import last_run
from flows.workers import WorkersError, read_runner, read_workers

Engine = Annotated[Literal["prefect", "local"], typer.Option(help="Prefect, or this process alone, without a server.")]


def refuse(read: Callable[[str], Any]) -> Callable[[str], str]:
    """Return what refuses an option's value as wrong usage."""

    def check(asked: str) -> str:
        try:
            read(asked)
        except WorkersError as error:
            raise typer.BadParameter(str(error)) from error
        return asked

    return check


Runner = Annotated[
    str,
    typer.Option(
        callback=refuse(read_runner),
        help="What runs the shards: threads, dask, or a Dask scheduler's address, tcp://HOST:8786.",
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        callback=refuse(read_workers),
        help="Shards that run at once: auto, one per CUDA device, or a number.",
    ),
]


@spoken
def run(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Data versions; all, where none is named.")] = None,
    *,
    engine: Engine = "prefect",
    runner: Runner = "threads",
    workers: Workers = "auto",
    as_json: Json = False,
) -> None:
    """Bring every stage up to date, version after version, and show what came of each."""
    from flows import engines
    from flows.graph.versions import refuse_rewritten
    from flows.undoing import take_back_killed

    take_back_killed()
    values = params.read()
    asked = versions or list(values.versions)
    refuse_rewritten(values.versions, versions or ())
    found = []

    def tell(version: str, stages: Sequence[str]) -> None:
        if version in asked:
            found.append(summarise(version, stages))
            if not as_json:
                show_summary(found[-1])

    engines.run(engine, asked, runner=runner, workers=workers, tell=tell)
    if as_json:
        show_json(found)


@spoken
def shard(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="utility, scores or gradients.")],
    version: Annotated[str, typer.Argument(help="The data version.")],
    share: Annotated[str, typer.Argument(metavar="K/N", help="Which of so many shares, from 1: 3/8.")],
    *,
    workers: Workers = "auto",
    as_json: Json = False,
) -> None:
    """Compute one share of a stage, for a batch system to start N of; the next `run` finds what they computed."""
    from flows import sharing
    from flows.undoing import take_back_killed

    take_back_killed()
    found = sharing.run(stage, version, share, workers=workers)
    show_rows(["stage", "share", "whole", "left"], [(f"{stage}@{version}", share, *found)], as_json=as_json)


@spoken
def advance(
    context: typer.Context,
    engine: Engine = "prefect",
    runner: Runner = "threads",
    workers: Workers = "auto",
    as_json: Json = False,
) -> None:
    """Run every data version that is not recorded yet, in order; commit, tag and push what each made."""
    from flows.graph.versions import tag_of
    from flows.unattended import continual

    made = continual.advance(engine=engine, runner=runner, workers=workers)
    show_rows(["version", "tag"], [(version, tag_of(version)) for version in made], as_json=as_json)


@spoken
def serve(
    context: typer.Context,
    interval: Annotated[
        int | None, typer.Option(min=1, help="Seconds from one look for new versions to the next; 3600.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="Or the times of the looks, as in a crontab: '0 3 * * *'.")] = None,
    runner: Runner = "threads",
    workers: Workers = "auto",
) -> None:
    """Do what `continue` does every so often, by a schedule of a Prefect server on this machine."""
    from flows.unattended import serving

    interrupts.uninstall()  # it ends by Ctrl-C in a way of its own: the schedule is deleted
    serving.serve(interval, cron, runner=runner, workers=workers)


def summarise(version: str, stages: Sequence[str]) -> dict[str, Any]:
    """Return a version's held-out losses by arm, the notes on them, its seconds per stage, and the pairs scored."""
    from tasks.audit import costs, summary

    found = summary.summarise(Path("."), version)
    names = ("arm", "rows", "loss", "low", "high", "seeds")
    return {
        "version": version,
        "arms": [dict(zip(names, arm, strict=True)) for arm in found.arms],
        "notes": list(found.notes),
        "seconds": {address.partition("@")[0]: last_run(address).get("seconds") for address in stages},
        "pairs_scored": found.pairs_scored,
        "costs": costs.read_costs(Path("."), version),
    }


def show_summary(found: dict[str, Any]) -> None:
    """Print a version's table of held-out losses, its seconds per stage, and where to look further."""
    version = found["version"]
    table = Table("arm", title=plain(f"{version}: held-out loss, nats per response token"), title_justify="left")
    for heading in ("rows", "loss", "95% interval"):
        table.add_column(heading, justify="right")
    for arm in found["arms"]:
        name = arm["arm"] if arm["seeds"] == 1 else f"{arm['arm']} ({arm['seeds']} seeds)"
        interval = f"{arm['low']:.4f} to {arm['high']:.4f}"
        table.add_row(plain(name), f"{arm['rows']:,}", f"{arm['loss']:.4f}", interval)
    metrics = f"dvc metrics show data/evaluation/version={version}/metrics.json"
    show_text(
        table,
        *found["notes"],
        f"seconds: {' · '.join(f'{name} {seconds}' for name, seconds in found['seconds'].items())}",
        f"pairs scored: {found['pairs_scored']:,}",
        *(found["costs"] or {"told": []})["told"],
        f'look further: tamis sql "select * from subset limit 5" · tamis show ID · {metrics}',
    )
