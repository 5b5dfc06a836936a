"""Commands that show the graph and what it stands on: `tamis status`, `tamis stages`, `tamis models`."""

from typing import Annotated

import typer

from flows import model_records, params
from flows.commands.errors import spoken
from flows.commands.output import Json, show_rows
from flows.environment import tell_other_libraries
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
    rows = []
    for run, address, state, why in made:
        reasons = "; ".join(filter(None, (why, tell_other_libraries(run.get("libraries", {})))))
        rows.append((address, state, run.get("created"), run.get("seconds"), reasons))
    show_rows(["stage", "state", "made", "seconds", "why"], rows, as_json=as_json)


@spoken
def stages(context: typer.Context, as_json: Json = False) -> None:
    """Show the graph: every stage, what it makes, and what it reads, in the order of the flow."""
    from flows.graph import dvc_state

    rows = [(planned.address, planned.about, ", ".join(planned.upstream)) for planned in dvc_state.plan()]
    show_rows(["stage", "makes", "reads"], rows, as_json=as_json)


@spoken
def models(
    context: typer.Context,
    update: Annotated[bool, typer.Option("--update", help="Take them as they are now, in data/models.")] = False,
    as_json: Json = False,
) -> None:
    """Show the models that stages depend on, and whether they are those that are recorded."""
    chosen = vars(params.read(bare=True).models)
    stale = model_records.find_stale(chosen)
    if update:
        model_records.write(chosen)
    rows = []
    for role in model_records.ROLES:
        record = stale.get(role) or model_records.read(role) or {}
        size = sum(one["size"] for one in record["files"].values())
        state = "as recorded" if role not in stale else "recorded now" if update else "not as recorded"
        rows.append((role, record["name"], record["revision"], len(record["files"]), size, record["digest"], state))
    show_rows(["model", "name", "revision", "files", "bytes", "digest", "state"], rows, as_json=as_json)
