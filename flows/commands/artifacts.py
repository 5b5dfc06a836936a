"""Commands on what the stages have made: `tamis merge`, `tamis store`, `tamis erase`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows import params
from flows.commands.errors import spoken
from flows.commands.output import Json, show_rows, working
from flows.stage import say

ROOT = Path(".")


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

    trained = stage_calls.folder("finetuning", version) / "arms" / arm
    sparse_deltas.merge(trained, stage_calls.language(params.read()), context.obj.stood / folder)
    say(f"{arm} of {version} stands in {folder}")


@spoken
def store(
    context: typer.Context,
    compact: Annotated[bool, typer.Option("--compact", help="Make one part of many.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what models and code no longer named made.")] = False,
    unknown: Annotated[bool, typer.Option("--unknown", help="With --prune: what does not say its maker, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is kept in .cache: pairs, vectors, scores, losses, answers, trials; tidy it up, never during a run."""
    with working("looking at what .cache holds"):
        from flows import scratch  # seconds to import
        from flows.stage_calls import CACHE, name_current
        from tasks.artifacts import stores

        values = params.read()
        keep = name_current(values)
    if compact or prune:
        with stores.upkeep(CACHE):
            if prune:
                gone = stores.prune(CACHE, keep, unknown=unknown)
                others, freed = scratch.prune(scratch.survey(values), unknown=unknown)
                kept = f"; {len(gone.unknown)} that do not say their maker stay" if gone.unknown else ""
                say(f"removed {len(gone.removed) + others} folders, {gone.freed / 1e6 + freed:.1f} MB{kept}")
            if compact:
                made = [stores.compact(folder) for folder in stores.list_folders(CACHE)]
                say(f"{sum(one.parts for one in made)} parts became {len(made)}")
    with working("looking at what .cache holds"):
        rows = [*stores.survey(CACHE, keep), *scratch.survey(values)]
    show_rows(stores.Stored._fields, rows, as_json=as_json)
    useless = [row.megabytes for row in rows if row.current is False]
    if useless:
        say(f"{len(useless)} of these are of no use to a run: `tamis store --prune` frees {sum(useless):.1f} MB")


@spoken
def erase(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="The example's id, in full.")],
    because: Annotated[str, typer.Option(help="Why, for data/erased.json; without the row's own words.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else its places are listed alone.")] = False,
    as_json: Json = False,
) -> None:
    """List every place that holds an example or was trained on it; with --yes, remove all that and leave it out."""
    from flows import erasing

    if not because.strip():
        raise erasing.ErasingError("--because is empty; say why, for those who read data/erased.json later")
    made = erasing.erase(id, because) if yes else None
    found = made.found if made else erasing.find(id)
    places = found.list_places()
    show_rows(["kind", "path", "what"], [(one.kind, one.path, one.what) for one in places], as_json=as_json)
    for one in found.erased:
        say(f"{one.id} is erased already, on {one.when}: {one.because}")
    told = erasing.tell_removable(places)
    say(f"removed: {told}" if made else f"--yes removes: {told}; now nothing was changed")
    for line in erasing.tell(found, done=yes):
        say(line)
    if made:
        say(f"to keep that: git add {shlex.join(made.changed)}, and commit")
        say("the next `tamis run` makes anew what the row was part of")
