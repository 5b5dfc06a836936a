"""Commands on the graph: status, stages, models, verify, replay; what a run would cost, and settings for it."""

from typing import Annotated

import typer

from flows import model_records, params
from flows.commands.errors import spoken
from flows.commands.output import Json, show_json, show_rows, show_text, working
from flows.environment import tell_other_libraries
from flows.stage import last_run, say
from flows.told import count


@spoken
def status(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Data versions; all, where none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Show for every stage whether it is up to date, why not, and when it was made."""
    from flows.graph import dvc_files, dvc_state

    rows = []
    for address, state, why in dvc_state.standings(dvc_state.plan(versions or ())):
        run = last_run(address)
        reasons = "; ".join(filter(None, (why, tell_other_libraries(run.get("libraries", {})))))
        rows.append((address, state, run.get("created"), run.get("seconds"), reasons))
    show_rows(["stage", "state", "made", "seconds", "why"], rows, as_json=as_json)
    for left, names in dvc_files.list_left().items():
        say(
            f"params.yaml has no version {left.name}, and {left} keeps {', '.join(names)}, which a version of that "
            "name would take up; to forget that, delete the folder"
        )


@spoken
def stages(context: typer.Context, as_json: Json = False) -> None:
    """Show the graph: every stage, what it makes, and what it reads, in the order of the flow."""
    from flows.graph import dvc_state

    rows = [(planned.address, planned.about, ", ".join(planned.upstream)) for planned in dvc_state.plan()]
    show_rows(["stage", "makes", "reads"], rows, as_json=as_json)


@spoken
def verify(context: typer.Context, as_json: Json = False) -> None:
    """Read all that is kept again, hold it against what was recorded, and mend what can be; never while a run works."""
    with working("reading all that is kept"):
        from flows import verify as verifying

        found = verifying.verify()
    rows = [(one.kind, one.path, one.problem, one.done) for one in found.findings]
    show_rows(["kind", "path", "problem", "done"], rows, as_json=as_json)
    say(f"looked at {', '.join(f'{count:,} of kind {kind}' for kind, count in found.looked_at.items())}")
    left = sum(not one.mended for one in found.findings)
    if left:
        say(f"{left} {'is' if left == 1 else 'are'} not mended yet")
        raise typer.Exit(1)


@spoken
def replay(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The data version.")],
    revision: Annotated[str | None, typer.Option(help="Of git, at which it is recorded; else its tag.")] = None,
    as_json: Json = False,
) -> None:
    """Run a recorded version again from its record alone, in a clone, and say which artifacts come out as recorded."""
    from flows import replay as replaying

    params.read(bare=True)  # refused here, if it cannot be read, and not by the run in the clone
    found = replaying.replay(version, revision)
    show_rows(["artifact", "came out", "difference"], [vars(one).values() for one in found], as_json=as_json)
    came = [one.came for one in found]
    rounded = came.count(replaying.ROUNDED)
    say(
        f"{came.count(replaying.SAME)} of {count(len(came), 'artifact')} came out as recorded"
        + (f", {rounded} more but for rounding" if rounded else "")
    )
    if replaying.OTHER in came:
        raise typer.Exit(1)


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
