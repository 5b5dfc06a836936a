"""The commands of `tamis`, run in this process."""

import json

from click.testing import Result
from typer.testing import CliRunner

from flows import cli


def tamis(*arguments: str, typed: str = "") -> Result:
    """Run a command, with what is typed into its stdin."""
    return CliRunner().invoke(cli.app, arguments, input=typed)


def ask(*arguments: str) -> list[dict]:
    """Run a command that succeeds, and return the rows that it prints."""
    done = tamis(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
