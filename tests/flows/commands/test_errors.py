"""A file where the project keeps a folder is told by every command, before it does anything."""

import os
import shutil
from pathlib import Path

import pytest
from worlds.commands import tamis

COMMANDS = {
    "verify": (),
    "status": (),
    "store": (),
    "run": ("--engine", "local"),
    "check": ("v1",),
    "sql": ("FROM subset",),
}


@pytest.mark.parametrize("place", [".cache", ".dvc/cache", "data", "versions"])
def test_a_file_where_a_folder_belongs_is_named_with_the_way_out(real_copy, place):
    shutil.rmtree(place, ignore_errors=True)
    Path(place).write_text("no folder")
    for name, more in COMMANDS.items():
        done = tamis(name, *more)
        told = f"error: {place} is no folder, and the project keeps a folder there; move it away, then run again\n"
        assert (done.exit_code, done.stderr) == (1, told), name


def test_a_link_that_leads_nowhere_is_named_and_one_to_a_folder_is_taken(real_copy, tmp_path):
    shutil.rmtree(".cache", ignore_errors=True)
    os.symlink(tmp_path / "elsewhere", ".cache")
    done = tamis("status")
    assert done.stderr.startswith(
        "error: .cache is a link that leads to no folder, and the project keeps a folder there"
    )
    (tmp_path / "elsewhere").mkdir()
    assert tamis("status").exit_code == 0


SPECIAL = [
    "dvc.lock",
    ".cache/costs.json",
    ".dvc/config.local",
    ".dvc/tmp/rwlock",
    "data/erased.json",
    "data/models/environment.json",
    "versions/v1/decisions.json",
]


@pytest.mark.parametrize("place", SPECIAL)
def test_a_named_pipe_where_a_file_belongs_keeps_no_command_waiting(real_copy, place):
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).unlink(missing_ok=True)
    os.mkfifo(place)
    for name, more in COMMANDS.items():
        done = tamis(name, *more)
        told = f"error: {place} is a named pipe, a socket or a device, no file; move it away, then run again\n"
        assert (done.exit_code, done.stderr) == (1, told), name


def test_a_link_to_a_named_pipe_is_told_too(real_copy, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", "versions/pipe")
    assert tamis("status").stderr.startswith("error: versions/pipe is a named pipe, a socket or a device, no file")


def test_a_link_that_leads_to_itself_is_told_and_a_project_of_links_is_read(real_copy):
    os.symlink("erased.json", "data/round.json")
    assert tamis("status").exit_code == 0
    Path("data/round.json").unlink()
    os.symlink("round.json", "data/round.json")
    for name, more in COMMANDS.items():
        told = "error: data/round.json is a link that leads to itself, no file; move it away, then run again\n"
        assert tamis(name, *more).stderr == told, name
