"""The `tamis` command: arguments in, calls, tables out. Data goes to stdout, talk to stderr."""

import csv
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows import params
from flows.stage import format_error, last_run

app = typer.Typer(
    help="Selects the examples that fine-tuning needs, as a versioned, queryable pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False)
ROOT = Path(".")


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Keep the options that hold for every command."""
    context.obj = debug


def spoken(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that says an error as one message and ends with exit status 1."""

    @wraps(command)
    def guarded(context: typer.Context, **arguments: Any) -> None:
        try:
            command(context, **arguments)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if context.obj:
                traceback.print_exc()
            typer.echo(f"error: {format_error(error)}", err=True)
            if not isinstance(error, ValueError) and not context.obj:
                typer.echo(f"`tamis --debug {context.info_name} ...` shows where", err=True)
            raise typer.Exit(1) from error

    return guarded


@app.command()
@spoken
def run(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Data versions; all, where none is named.")] = None,
    runner: Annotated[str, typer.Option(help="What runs the shards: threads or dask.")] = "threads",
    workers: Annotated[int, typer.Option(min=1, help="Shards that run at once.")] = 1,
) -> None:
    """Bring every stage up to date, then show the results."""
    from flows import pipeline
    from flows.graph.versions import refuse_rewritten

    values = params.read()
    refuse_rewritten(values.versions)
    asked = versions or list(values.versions)
    outcomes = pipeline.run(asked, runner=runner, workers=workers)
    for version in asked:
        results(version, [outcome.address for outcome in outcomes])


@app.command("continue")
@spoken
def advance(
    context: typer.Context,
    runner: Annotated[str, typer.Option(help="What runs the shards: threads or dask.")] = "threads",
    workers: Annotated[int, typer.Option(min=1, help="Shards that run at once.")] = 1,
) -> None:
    """Run every data version that is not recorded yet, in order; commit, tag and push what each made."""
    from flows.graph import continual
    from flows.graph.versions import tag_of

    params.read()  # what cannot be used is refused before anything runs
    made = continual.advance(runner=runner, workers=workers)
    show_rows(["version", "tag"], [(version, tag_of(version)) for version in made])


@app.command()
@spoken
def serve(
    context: typer.Context,
    interval: Annotated[int, typer.Option(min=1, help="Seconds from one look for new versions to the next.")] = 3600,
    runner: Annotated[str, typer.Option(help="What runs the shards: threads or dask.")] = "threads",
    workers: Annotated[int, typer.Option(min=1, help="Shards that run at once.")] = 1,
) -> None:
    """Do what `continue` does every so often, by a schedule of a Prefect server on this machine."""
    from flows.graph import continual

    params.read()
    continual.serve(interval, runner=runner, workers=workers)


@app.command()
@spoken
def status(context: typer.Context) -> None:
    """Show for every stage whether it is up to date, why not, and when it was made."""
    from flows.graph import dvc_state

    made = [(last_run(address), address, state, why) for address, state, why in dvc_state.standings()]
    rows = [(address, state, run.get("created"), run.get("seconds"), why) for run, address, state, why in made]
    show_rows(["stage", "state", "made", "seconds", "why"], rows)


@app.command()
@spoken
def stages(context: typer.Context) -> None:
    """Show the graph: every stage, what it makes, and what it reads, in the order of the flow."""
    from flows.graph import dvc_state

    rows = [(planned.address, planned.about, ", ".join(planned.upstream)) for planned in dvc_state.plan()]
    show_rows(["stage", "makes", "reads"], rows)


@app.command()
@spoken
def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Every artifact is a view, such as subset or evaluation.")],
    revision: Annotated[str | None, typer.Option(help="Ask those of a commit, tag or branch; no checkout.")] = None,
) -> None:
    """Ask the artifacts of all versions, read-only."""
    from tasks.artifacts import views

    if revision is None:
        show_rows(*views.query(ROOT, query))
        return
    from flows.graph import dvc_state

    with dvc_state.at_revision(revision) as root:
        show_rows(*views.query(root, query))


@app.command()
@spoken
def show(context: typer.Context, id: Annotated[str, typer.Argument(help="An example's id, or how it begins.")]) -> None:
    """Show everything that is known about one example."""
    from tasks.artifacts import views

    out.print_json(data=views.show(ROOT, id), default=str)


@app.command()
@spoken
def compare(
    context: typer.Context,
    *,
    version: Annotated[str, typer.Argument(help="The data version.")] = "v1",
    selectors: Annotated[
        str, typer.Option(help="Words of selection.selector, or all, with commas; random is added.")
    ] = "delift",
    masks: Annotated[
        str, typer.Option(help="Words of mask.selector, with commas; none, random and selector all are added.")
    ] = "none",
    budgets: Annotated[
        str, typer.Option(help="Fractions of the pool and of the parameters, or counts of rows.")
    ] = "0.1,0.3",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per selector and budget.")] = 3,
) -> None:
    """Compare selectors and masks at equal budgets: loss with intervals, and cost; goes on where it stopped."""
    from flows.compare import compare as run_all

    words = {"selectors": selectors.split(","), "budgets": budgets.split(","), "masks": masks.split(",")}
    rows = run_all(version, **words, seeds=seeds)
    show_rows(list(rows[0]), [[_round(value) for value in row.values()] for row in rows])
    picture = f"data/comparison/version={version}/comparison.png"
    typer.echo(f"look further: {picture} · tamis sql 'FROM comparison' · dvc plots show", err=True)


@app.command()
@spoken
def repeats(context: typer.Context, version: Annotated[str, typer.Argument(help="The data version.")] = "v2") -> None:
    """Show what becomes of repeated rows that are left in: how many facility location keeps, and random rows."""
    from flows.compare import repeat

    rows = repeat(version)
    if not rows:
        typer.echo(f"no row of {version}'s pool is repeated", err=True)
        return
    show_rows(
        ["topic", "rows", "distinct", "kept by facility location", "kept at random"], [[*row.values()] for row in rows]
    )


@app.command()
@spoken
def merge(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The data version.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not hold anything.")],
    arm: Annotated[str, typer.Option(help="The trained arm and its seed.")] = "chosen-0",
) -> None:
    """Write a trained arm as a whole model folder that transformers loads: the base with its delta or adapters."""
    from flows import stage_calls
    from tasks.masks import sparse_deltas

    sparse_deltas.merge(
        stage_calls.folder("finetuning", version) / "arms" / arm, stage_calls.language(params.read()), folder
    )
    typer.echo(f"{arm} of {version} stands in {folder}", err=True)


@app.command()
@spoken
def store(
    context: typer.Context,
    compact: Annotated[bool, typer.Option("--compact", help="Make one part of many.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what models and code no longer named made.")] = False,
    unknown: Annotated[bool, typer.Option("--unknown", help="With --prune: what does not say its maker, too.")] = False,
) -> None:
    """Show the stores of scored pairs, vectors and scores in .cache; tidy them up, never while a run uses them."""
    from flows.stage_calls import CACHE, name_current
    from tasks.artifacts import stores

    keep = name_current(params.read())
    if compact or prune:
        with stores.upkeep(CACHE):
            if prune:
                gone = stores.prune(CACHE, keep, unknown=unknown)
                kept = f"; {len(gone.unknown)} that do not say their maker stay" if gone.unknown else ""
                typer.echo(f"removed {len(gone.removed)} folders, {gone.freed / 1e6:.1f} MB{kept}", err=True)
            if compact:
                made = [stores.compact(folder) for folder in stores.list_folders(CACHE)]
                typer.echo(f"{sum(one.parts for one in made)} parts became {len(made)}", err=True)
    found = stores.survey(CACHE, keep)
    show_rows(stores.Stored._fields, found)


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def results(version: str, addresses: Sequence[str]) -> None:
    """Print a version's table of held-out losses, its seconds per stage, and where to look further."""
    from tasks.audit import audit

    summary = audit.summarise(ROOT, version)
    table = Table("arm", title=f"{version}: held-out loss, nats per response token", title_justify="left")
    for heading in ("rows", "loss", "95% interval"):
        table.add_column(heading, justify="right")
    for arm, rows, loss, low, high, seeds in summary.arms:
        table.add_row(
            arm if seeds == 1 else f"{arm} ({seeds} seeds)", f"{rows:,}", f"{loss:.4f}", f"{low:.4f} to {high:.4f}"
        )
    out.print(table)
    for note in summary.notes:
        out.print(note, soft_wrap=True)
    spent = {address: last_run(address).get("seconds") for address in addresses if address.endswith(f"@{version}")}
    times = " · ".join(f"{address.partition('@')[0]} {seconds}" for address, seconds in spent.items())
    out.print(f"seconds: {times}", soft_wrap=True)
    out.print(f"pairs scored: {summary.pairs_scored:,}")
    metrics = f"dvc metrics show data/evaluation/version={version}/metrics.json"
    out.print(f'look further: tamis sql "select * from subset limit 5" · tamis show ID · {metrics}', soft_wrap=True)


def show_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows on stdout: a table for people, CSV for programs."""
    if not out.is_terminal:
        csv.writer(sys.stdout, lineterminator="\n").writerows([names, *rows])
        return
    table = Table(*names)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    out.print(table)


if __name__ == "__main__":
    app()
