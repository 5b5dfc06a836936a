"""Commands that set choices of rows side by side: `tamis compare` and `tamis repeats`."""

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
        str, typer.Option(help="Words of selection.selector, or all, with commas; random is added.")
    ] = "delift",
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

    words = {"selectors": split_words(selectors), "budgets": split_words(budgets), "masks": split_words(masks)}
    rows = run_all(version, **words, seeds=seeds)
    show_rows(list(rows[0]), [[_round(value) for value in row.values()] for row in rows], as_json=as_json)
    picture = f"data/comparison/version={version}/comparison.png"
    say(f"look further: {picture} · tamis sql 'FROM comparison' · dvc plots show")


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
