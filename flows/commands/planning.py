"""Commands that come before a run: `tamis estimate` and `tamis recipe`."""

from typing import Annotated

import typer

from flows.commands.errors import spoken
from flows.commands.output import Json, show_json, show_rows, show_text
from flows.stage import say


@spoken
def estimate(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Data versions; all, where none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a run would compute per stage, and how long that would take on this machine."""
    from flows import estimate as estimates
    from flows.graph import dvc_state

    found = estimates.make_estimate(dvc_state.plan(versions or ()))
    if as_json:
        show_json(estimates.make_rows(found))
    else:
        show_rows(*estimates.make_table(found))


@spoken
def recipe(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One of recipes/; all are listed, where none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Merge settings that go together into params.yaml, its comments kept, and show the difference."""
    from flows import recipes

    if name is None:
        show_rows(["recipe", "what it is for"], [*recipes.list_recipes().items()], as_json=as_json)
        return
    told = recipes.merge(name)
    if as_json:
        show_json([{"recipe": name, "difference": told}])
    elif told:
        show_text(*told.splitlines())
    else:
        say(f"params.yaml holds what recipe {name} gives")
