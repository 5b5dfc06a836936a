"""Commands that show the graph: `tamis status` and `tamis stages`."""

from typing import Annotated

import typer

from flows.commands.errors import spoken
from flows.commands.output import Json, show_rows
from flows.stage import last_run


@spoken
def status(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Data versions; all, where none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Show for every stage whether it is up to date, why not, and when it was made."""
    from flows.graph import dvc_state

    made = [(last_run(address), address, state, why) for address, state, why in dvc_state.standings(versions or ())]
    rows = [(address, state, run.get("created"), run.get("seconds"), why) for run, address, state, why in made]
    show_rows(["stage", "state", "made", "seconds", "why"], rows, as_json=as_json)


@spoken
def stages(context: typer.Context, as_json: Json = False) -> None:
    """Show the graph: every stage, what it makes, and what it reads, in the order of the flow."""
    from flows.graph import dvc_state

    rows = [(planned.address, planned.about, ", ".join(planned.upstream)) for planned in dvc_state.plan()]
    show_rows(["stage", "makes", "reads"], rows, as_json=as_json)
