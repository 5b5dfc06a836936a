"""The `tamis` command: its commands by name, and the options that hold for all of them."""

from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import artifacts, asking, comparing, graph, raw_data, running
from flows.commands.errors import Setting

COMMANDS = {
    "check": raw_data.check,
    "add": raw_data.add,
    "estimate": graph.estimate,
    "recipe": graph.recipe,
    "run": running.run,
    "shard": running.shard,
    "continue": running.advance,
    "serve": running.serve,
    "status": graph.status,
    "stages": graph.stages,
    "models": graph.models,
    "verify": graph.verify,
    "replay": graph.replay,
    "sql": asking.sql,
    "show": asking.show,
    "why": asking.why,
    "diff": asking.diff,
    "audit": asking.audit,
    "approve": asking.approve,
    "approvals": asking.approvals,
    "veto": asking.veto,
    "pin": asking.pin,
    "release": asking.release,
    "decisions": asking.decisions,
    "desk": asking.desk,
    "compare": comparing.compare,
    "repeats": comparing.repeats,
    "study": comparing.study,
    "export": raw_data.export,
    "merge": artifacts.merge,
    "store": artifacts.store,
    "erase": artifacts.erase,
}
app = typer.Typer(
    help="Selects the examples that fine-tuning needs, as a versioned, queryable pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tamis {installed('tamis')}")
        raise typer.Exit()


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Keep the options that hold for every command."""
    context.obj = Setting(debug, Path.cwd())


if __name__ == "__main__":
    app()
