"""Commands that set choices of rows side by side: `tamis compare`, `tamis study` and `tamis repeats`."""

from typing import Annotated, Any

import typer

from flows.commands.errors import spoken
from flows.commands.output import Json, show_rows
from flows.stage import say


@spoken
def compare(
    context: typer.Context,
    *,
    version: Annotated[str, typer.Argument(help="The data version.")] = "v1",
    selectors: Annotated[
        str | None,
        typer.Option(help="Words of selection.selector, or all, with commas; that of params.yaml. random is added."),
    ] = None,
    masks: Annotated[
        str, typer.Option(help="Words of mask.selector, with commas; none, random and selector all are added.")
    ] = "none",
    budgets: Annotated[
        str, typer.Option(help="Fractions of the pool and of the parameters, or counts of rows.")
    ] = "0.1,0.3",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per selector and budget.")] = 3,
    as_json: Json = False,
) -> None:
    """Compare selectors and masks at equal budgets: loss with intervals, and cost; goes on where it stopped."""
    from flows.compare import compare as run_all

    words = {"budgets": split_words(budgets), "masks": split_words(masks)}
    words["selectors"] = split_words(selectors) if selectors else []
    rows = run_all(version, **words, seeds=seeds)
    show_rows(list(rows[0]), [[_round(value) for value in row.values()] for row in rows], as_json=as_json)
    picture = f"data/comparison/version={version}/comparison.png"
    say(f"look further: {picture} · tamis sql 'FROM comparison' · dvc plots show")


@spoken
def study(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="One of studies/.")],
    estimate: Annotated[bool, typer.Option("--estimate", help="Show what it would cost, and run nothing.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0, help="After which no further training is begun.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Make those cells anew that other code made.")] = False,
    pools: Annotated[str | None, typer.Option(help="Only these, with commas: machines may share a study so.")] = None,
    selectors: Annotated[str | None, typer.Option(help="Only these, with commas: what matters first.")] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="The confirmation pools, once the default stands.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Write study.md of what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Compare selectors on many pools with many seeds, over as many sittings as it takes; goes on where it stopped."""
    from flows.study.plan import choose_pools, choose_selectors, read_study

    asked = read_study(name)
    if report:
        from flows.study.reporting import write_report

        for path in write_report(asked):
            say(f"wrote {path}")
        return
    from flows.study import costs

    asked = choose_pools(asked, confirm=confirm, only=split_words(pools) if pools else [])
    asked = choose_selectors(asked, split_words(selectors) if selectors else [])
    if estimate:
        show_rows(costs.HEADINGS, costs.make_table(asked, costs.estimate_study(asked)), as_json=as_json)
        return
    from flows.study.run import run as run_all

    found = run_all(asked, minutes=minutes, again=again, seconds=costs.expect_blocks(asked))
    show_rows(["cells", "done", "made now"], [[found.cells, found.done, found.made]], as_json=as_json)


@spoken
def repeats(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The data version.")] = "v2",
    as_json: Json = False,
) -> None:
    """Show what becomes of repeated rows that are left in: how many facility location keeps, and random rows."""
    from flows.compare import repeat

    rows = repeat(version)
    if not rows:
        say(f"no row of {version}'s pool is repeated")
    if rows or as_json:
        names = ["topic", "rows", "distinct", "kept by facility location", "kept at random"]
        show_rows(names, [[*row.values()] for row in rows], as_json=as_json)


def split_words(text: str) -> list[str]:
    """Return the words of a list with commas; blanks around them are nothing.

    >>> split_words("delift, embedding ,longest")
    ['delift', 'embedding', 'longest']
    """
    return [word.strip() for word in text.split(",")]


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
