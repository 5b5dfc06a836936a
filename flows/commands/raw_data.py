"""Commands about raw rows: `tamis check` and `tamis add` look at them before a run, `tamis export` takes them away."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import params
from flows.checks import refuse_unknown
from flows.commands.errors import spoken
from flows.commands.output import Json, show_json
from flows.stage import say
from flows.stage_calls import find_artifacts, find_record
from flows.told import count, tell_moved
from tasks.examples.settings import ExamplesSettings
from tasks.settings import VersionSettings


@spoken
def check(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The data version.")] = "v1",
    as_json: Json = False,
) -> None:
    """Show what a run would read of a version's files: formats, examples as rendered, counts, rejects and why."""
    from tasks.first_look.kept_files import list_differences

    settings = find_version(version)
    raw = Path(settings.raw)
    asked = params.read().examples
    last = show_looks(version, raw, settings.previous, settings=asked, as_json=as_json)
    moved = list_differences(raw, find_record(version))
    if as_json:
        show_json([{"version": version, "raw": str(raw), **describe(last), "moved": moved}])
    elif moved:
        say(tell_moved(version, moved))


@spoken
def add(
    context: typer.Context,
    *,
    path: Annotated[str, typer.Argument(help="A file or folder with data files; a pattern, with --copy.")],
    version: Annotated[str | None, typer.Option(help="The version's name; else the next free vN.")] = None,
    previous: Annotated[str | None, typer.Option(help="What it continues from; else the newest version.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show all, write nothing.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files to data/raw/<version> and into DVC.")] = False,
    external: Annotated[bool, typer.Option("--external", help="Read files outside of the project there.")] = False,
    as_json: Json = False,
) -> None:
    """Look at files as `check` does, and add them to params.yaml as a new data version."""
    from flows import adding, undoing

    where = adding.find_path(context.obj.stood, path)
    chosen = {"version": version, "previous": previous, "copy": copy, "external": external}
    with nullcontext() if dry_run else undoing.adding():
        facts, look, held = _add(where, chosen, dry_run=dry_run, as_json=as_json)
    if as_json:
        show_json([{**facts, **describe(look), "written": not dry_run, "commit": held}])
    for line in tell_addition(facts, held, context.obj.stood):
        say(line)


def _add(
    where: Path, chosen: Mapping[str, Any], *, dry_run: bool, as_json: bool
) -> tuple[dict[str, Any], Any, list[str]]:
    """Look at files and add them as asked; returns the version's facts, the look, and what git is to hold."""
    from flows import adding
    from flows.graph.versions import list_refused
    from flows.looks import tell_commonest
    from tasks.first_look.fitting import find_sources

    values = params.read(bare=True)
    planned = adding.plan_addition(where, values.versions, **chosen, refused=list_refused())
    sources = find_sources(planned.found, values.examples)
    asked = replace(values.examples, sources={**values.examples.sources, planned.version: sources})
    look = show_looks(planned.version, planned.found, planned.previous, settings=asked, as_json=as_json)
    if look.rows == look.rejected + look.erased:
        raise adding.AddError(f"no row of {planned.found} can be used, so nothing is added{tell_commonest(look)}")
    with nullcontext([]) if dry_run else adding.written(planned, sources) as held:
        pass
    facts = {"version": planned.version, "raw": planned.raw, "previous": planned.previous, "sources": sources}
    return facts, look, held


def tell_addition(facts: Mapping[str, Any], held: Sequence[str], stood: Path) -> Iterator[str]:
    """Yield what params.yaml has of a version that was added, and what is next.

    Args:
        facts: the version, its raw path, what it continues from, and its sources.
        held: what git is to hold, empty where nothing is written.
        stood: where the user stands.
    """
    from flows.adding import name_paths

    settings = f"{facts['version']}: {{raw: {facts['raw']}, previous: {facts['previous']}}}"
    if facts["sources"]:
        settings += f", and examples.sources.{facts['version']}: {json.dumps(facts['sources'])}"
    if not held:
        yield f"nothing is written; without --dry-run, params.yaml would have {settings}"
    else:
        yield f"params.yaml has {settings}; next: tamis run {facts['version']}"
        yield f"to keep it: git add {name_paths(held, stood)}"


@spoken
def export(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The data version.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not hold anything.")],
    to: Annotated[
        str, typer.Option(help="jsonl, the original records; or trl, llamafactory, axolotl, sharegpt.")
    ] = "jsonl",
) -> None:
    """Write a version's chosen rows into a folder in the order of choice, with a data card."""
    from tasks.export.export import ROWS, write_export

    raw = Path(find_version(version).raw)
    made = write_export(find_artifacts(version), raw, context.obj.stood / folder, layout=to, root=Path())
    say(f"{count(made.rows, 'chosen row')} of {version} stand in {folder / ROWS} ({to}), the data card beside them")
    for gap, rows in made.gaps.items():
        say(f"{count(rows, 'row')}: {gap}")


def find_version(version: str) -> VersionSettings:
    """Return a version's settings.

    Raises:
        ParamsError: there is no such version.
    """
    versions = params.read().versions
    refuse_unknown(version, versions)
    return versions[version]


def describe(look: Any) -> dict[str, Any]:
    """Return a look as an object of JSON."""
    return asdict(look) | {"not_read": [one._asdict() for one in look.not_read]}


def show_looks(version: str, raw: Path, previous: str, *, settings: ExamplesSettings, as_json: bool) -> Any:
    """Show what a sample of raw rows says, then what all say, unless that is for a program; returns the latter."""
    from flows.looks import show_look, take_looks

    shown = False
    for look in take_looks(version, raw, previous, settings):
        if not as_json:
            show_look(look, f"{version}: {raw}", previous, examples=not shown)
        shown = True
    return look
