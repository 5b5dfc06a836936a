"""Commands that ask the artifacts, and sign them off: sql, show, why, diff, audit, approve, approvals, desk."""

import os
import re
import shutil
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows import params
from flows.checks import refuse_unknown
from flows.commands.errors import spoken
from flows.commands.output import Format, Json, name_form, plain, show_as, show_json, show_object, show_text
from flows.graph.stages import PARAMS
from flows.serving_desk import PORT
from flows.stage import say

ROOT = Path(".")
MapMethod = Literal["pca", "umap"]
HAVING = "SELECT DISTINCT version FROM subset WHERE id = $id"  # versions that could choose a row


@spoken
def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Every artifact is a view, such as subset; - reads it from stdin.")],
    *,
    revision: Annotated[str | None, typer.Option(help="Ask those of a commit, tag or branch; no checkout.")] = None,
    seconds: Annotated[float, typer.Option(help="Give up after this time.")] = 60.0,
    gigabytes: Annotated[float, typer.Option(help="Memory that the question, and again its answer, may take.")] = 4.0,
    most: Annotated[int, typer.Option("--rows", help="Refuse an answer of more rows.")] = 1_000_000,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Ask the artifacts of all versions, read-only."""
    from tasks.catalogue import questions

    form = name_form(form, as_json)
    limits = questions.Limits(seconds, gigabytes, most)
    query = sys.stdin.read() if query == "-" else query
    with _at(revision) as root:
        names, rows = questions.query(root, query, _list_versions(root), limits, overrun=partial(_end, root))
    show_as(form, names, rows)


def _at(revision: str | None) -> AbstractContextManager[Path]:
    """Return the project's folder, or one that holds its tables at a revision."""
    if revision is None:
        return nullcontext(ROOT)
    from flows.graph.revisions import at_revision

    return at_revision(revision)


def _end(root: Path, told: str) -> None:
    """Say an error and end this process, whatever another thread of it is at; a revision's folder goes with it."""
    say(f"error: {told}")
    if root != ROOT:
        shutil.rmtree(root)  # links into DVC's cache, which are not followed
    os._exit(1)


def _list_versions(root: Path) -> dict[str, dict[str, Any]] | None:
    """Return the versions of params.yaml; None at a revision that has no such file."""
    if root != ROOT and not (root / PARAMS).exists():
        return None
    return {name: vars(one) for name, one in params.read_versions(root / PARAMS).items()}


@spoken
def show(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="An example's id, or how it begins; a data version; with --find words.")],
    find: Annotated[bool, typer.Option("--find", help="List the examples that say all of these words.")] = False,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Show everything that is known about one example, or what became of a version's rows, its choice and its arms."""
    from tasks.catalogue import rows

    form = name_form(form, as_json)
    if find:
        _show_found(form, *rows.find(ROOT, id))
        return
    found = rows.show_version(ROOT, id)
    if found is None:
        _refuse_version(id)
        found = rows.show(ROOT, id)
    if form is None:
        show_object(found)
    elif form == "json":
        show_json([found])
    else:
        show_as(form, ["part", "row", "name", "value"], rows.flatten(found))


def _show_found(form: str | None, names: list[str], rows: list[tuple], found: int) -> None:
    """Print the examples that say some words, and how many there are."""
    show_as(form, names, rows)
    if all(row[names.index("chosen")] is None for row in rows):
        say("whether they were chosen is not known: nothing was chosen yet, or subset.parquet is damaged")
    if found > len(rows):
        say(f"{len(rows)} of {found:,} examples that say this, those first that say it most; give more words")


def _refuse_version(name: str) -> None:
    """Raise ParamsError where a name can be no example's id, or is that of a version of which nothing is made."""
    versions = params.read(bare=True).versions
    if name in versions:
        raise params.ParamsError(f"nothing of {name} is made yet; make it: `tamis run {name}`")
    if re.fullmatch(r"v\d+", name):
        refuse_unknown(name, versions)


@spoken
def why(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="An example's id, or how it begins.")],
    *,
    version: Annotated[str | None, typer.Option(help="The data version; else every one that has the row.")] = None,
    budgets: Annotated[
        bool, typer.Option("--budgets", help="Choose again with budgets from a tenth to all: which of them takes it?")
    ] = False,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Say in sentences why a row was chosen or not, and what stands for it."""
    from tasks.artifacts.views import opened
    from tasks.catalogue import rows, sources
    from tasks.catalogue import why as telling

    form, values = name_form(form, as_json), params.read()
    if version is not None:
        refuse_unknown(version, values.versions)
    found = sources.find_artifacts(ROOT)
    rows.need(found, "examples", "subset")
    stories, views = [], frozenset({*found.views, *found.derived})
    with opened(found.views, derived=found.derived) as connection:
        full = rows.complete(connection, id)
        chosen_from = {one for (one,) in connection.execute(HAVING, {"id": full}).fetchall()}
        for name in [version] if version else values.versions:
            entries = _try_budgets(name, values) if budgets and name in chosen_from else None
            story = telling.tell(connection, name, full, views=views, root=ROOT, enters=entries)
            stories += [story] if story else []
    if not stories:
        none = f"{version} has no" if version else f"none of {', '.join(values.versions)} has the"
        raise rows.QuestionError(f"{none} row {full}; `tamis show {full}` says where it is")
    if form is None:
        for story in stories:
            show_text(plain(f"{story.id} in {story.version}: {story.state}"), *map(plain, story.sentences))
        return
    told = [(story.version, story.id, story.state, sentence) for story in stories for sentence in story.sentences]
    show_as(form, ["version", "id", "state", "sentence"], told)


def _try_budgets(version: str, values: params.Params) -> dict[str, float]:
    from flows.entering import find_entries, restore_selection, try_budgets

    if "response_tokens" in restore_selection(version, values).selection.budget:
        say(f"the budget of {version} is one of tokens; those that are tried for it are of rows")
    return find_entries(list(try_budgets(version, values)))


@spoken
def diff(
    context: typer.Context,
    before: Annotated[str, typer.Argument(help="A data version; with --of a revision of git, or a selector.")],
    after: Annotated[str, typer.Argument(help="Another one.")],
    *,
    of: Annotated[str | None, typer.Option(help="The data version that is compared at two revisions.")] = None,
    selectors: Annotated[
        bool, typer.Option("--selectors", help="With --of: its choice by two selectors, at its budget.")
    ] = False,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Say which rows enter and leave a choice, and why, how masks overlap, and what was measured."""
    from tasks.catalogue import diffs

    form = name_form(form, as_json)
    if selectors:
        from flows.entering import ask_selector

        values = params.read()
        for name in (before, after):
            ask_selector(name, values)  # refuses what cannot be, before the first one is chosen by
    with ExitStack() as stack:
        sides = [stack.enter_context(_side(name, of, selectors)) for name in (before, after)]
        found = diffs.compare(*sides)
        rows = [tuple(row.values()) for row in found.rows]
    show_as(form, ["change", "id", "topic", "reason", "rank", "prompt"], rows)
    _tell_differences(found)


def _tell_differences(found: Any) -> None:
    """Say how many rows enter and leave, how masks overlap, and what was measured."""
    say(f"{found.enter:,} rows enter, {found.leave:,} leave, {found.both:,} are chosen in both")
    for row in found.masks:
        where = row["module"] if row["layer"] is None else f"layer {row['layer']} {row['module']}"
        say(f"mask, {where}: {row['before']:,} then {row['after']:,} parameters, Jaccard {row['jaccard']:.3f}")
    for row in found.metrics:
        say(f"loss of {row['arm']}: {_interval(row, 'before')}, then {_interval(row, 'after')}")
    if found.measured_on:
        say(found.measured_on)


def _interval(row: dict[str, Any], end: str) -> str:
    return f"{row[end]:.4f} ({row[f'{end}_low']:.4f} to {row[f'{end}_high']:.4f})"


def _side(name: str, of: str | None, selectors: bool) -> AbstractContextManager[Any]:
    """Return a version, or its choice at a revision or by a selector, as one side.

    Raises:
        ParamsError: selectors are compared of no version.
    """
    from flows import sides

    if of is None and selectors:
        raise params.ParamsError("--selectors compares choices of one version: name it, with --of")
    versions = params.read().versions
    refuse_unknown(name if of is None else of, versions)
    if of is None:
        return sides.open_version(name)
    return sides.open_choice(name, of) if selectors else sides.open_revision(name, of)


@spoken
def audit(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Data versions; else all that are made.")] = None,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Check the promises of the artifacts as they are now, and show what else is found; status 1 if one is broken."""
    from flows.approving import check_promises

    form, values, rows = name_form(form, as_json), params.read(), []
    for version in _list_made(versions, values):
        for one in check_promises(version, values):
            state = "shown" if not one.promise else "broken" if one.found else "kept"
            rows.append((version, one.name, state, len(one.found), one.says, ", ".join(one.found)))
    show_as(form, ["version", "check", "state", "found", "says", "detail"], rows)
    broken = sum(row[2] == "broken" for row in rows)
    say(f"{broken:,} of {sum(row[2] != 'shown' for row in rows):,} promises are broken")
    if broken:
        raise typer.Exit(1)


def _list_made(versions: list[str] | None, values: params.Params) -> list[str]:
    """Return the versions that are asked for, or all that are evaluated; of the others it is said that they are not.

    Raises:
        ParamsError: there is no such version, or none is evaluated.
    """
    from flows.stage_calls import folder

    for version in versions or ():
        refuse_unknown(version, values.versions)
    if versions:
        return versions
    made = [name for name in values.versions if (folder("evaluation", name) / "evaluation.parquet").exists()]
    for version in values.versions:
        if version not in made:
            say(f"{version} is not made yet, and not checked: `tamis run {version}`")
    if not made:
        raise params.ParamsError("no data version is made yet; `tamis run` makes them")
    return made


@spoken
def approve(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="The data version.")],
    by: Annotated[str | None, typer.Option(help="Who accepts it; else git's user.")] = None,
    note: Annotated[str, typer.Option(help="What they say of it.")] = "",
    despite: Annotated[list[str] | None, typer.Option(help="A promise that is broken and accepted so.")] = None,
) -> None:
    """Record who accepts a version as it is made, bound to the digests of its artifacts."""
    from flows import approving

    signed = approving.approve(version, params.read(), by=by, note=note, despite=despite or ())
    say(f"{version} is approved by {signed.by}; to keep that: git add data/approvals.jsonl, and commit")


Row = Annotated[str, typer.Argument(help="An example's id, or how it begins.")]
Because = Annotated[str, typer.Option(help="Why; without the row's own words.")]
By = Annotated[str | None, typer.Option(help="Who says so; else git's user.")]
From = Annotated[str | None, typer.Option(help="The version from which on; else the newest that has the row.")]


@spoken
def veto(context: typer.Context, id: Row, because: Because, by: By = None, version: From = None) -> None:
    """Use a row no more from the next selection on, with all that has its text."""
    _decide("veto", "vetoed", id, because=because, by=by, version=version)


@spoken
def pin(context: typer.Context, id: Row, because: Because, by: By = None, version: From = None) -> None:
    """Choose a row before all others from the next selection on, wherever the pool has it."""
    _decide("pin", "pinned", id, because=because, by=by, version=version)


@spoken
def release(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="The vetoed or pinned example's id, or how it begins.")],
    version: Annotated[str | None, typer.Option(help="The version from which on; else everywhere.")] = None,
) -> None:
    """Take back a veto or a pin."""
    from flows import deciding

    _tell_decided("released", deciding.release(id, params.read(), version=version))


@spoken
def decisions(context: typer.Context, form: Format = None, as_json: Json = False) -> None:
    """Show which rows are vetoed or pinned, for which versions, by whom and why."""
    from tasks.decisions import tabulate_decisions

    form = name_form(form, as_json)
    found = tabulate_decisions(ROOT, params.read().versions)
    show_as(form, found.schema.names, [tuple(row.values()) for row in found.to_pylist()])


def _decide(kind: str, done: str, id: str, **asked: Any) -> None:
    from flows import deciding

    _tell_decided(done, deciding.decide(kind, id, params.read(), **asked))


def _tell_decided(what: str, found: Any) -> None:
    versions = " ".join(found.versions)
    say(f"{found.id} is {what} for {versions}; `tamis run {versions}` honours it; to keep that: git add versions")
    if found.replaced:
        say(f"in place of {found.replaced}")


@spoken
def approvals(context: typer.Context, form: Format = None, as_json: Json = False) -> None:
    """Show which versions are approved, by whom, and what has changed since: artifacts, settings, inputs."""
    from flows import approving

    form = name_form(form, as_json)
    found = [vars(signed) for signed in approving.find_all_signed(params.read().versions).values()]
    rows = [[", ".join(cell) if isinstance(cell, tuple) else cell for cell in one.values()] for one in found]
    show_as(form, [one.name for one in fields(approving.Signed)], rows)


@spoken
def desk(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Of this machine's own address.")] = PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    places: Annotated[MapMethod, typer.Option("--map", help="How rows are placed; umap needs umap-learn.")] = "pca",
    atlas: Annotated[
        str | None, typer.Option(help="Write this version's rows to desk.parquet for Embedding Atlas instead.")
    ] = None,
) -> None:
    """Show the project in the browser: rows and why, maps, differences, questions, sign-off. Ends with Ctrl-C."""
    from flows.serving_desk import make_maps, serve

    values = params.read()
    if atlas is not None:
        from tasks.browsing.atlas import write_atlas

        refuse_unknown(atlas, values.versions)
        words = write_atlas(ROOT, atlas, Path("desk.parquet"), places)
        say("desk.parquet is written; `pip install embedding-atlas` brings what shows it:")
        show_text(" ".join(words))
        return
    make_maps(values, places)
    serve(port, browser=browser)
