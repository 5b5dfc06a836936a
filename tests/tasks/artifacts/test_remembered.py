"""What was found of a file is known as long as the file stays what it is, and no longer."""

import json
import os

import pytest

from tasks.artifacts import remembered
from tasks.artifacts.remembered import remember


class Reader:
    """Finds a file's text, and counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, path):
        self.asked.append(path.name)
        return path.read_text()


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two files that changed long ago, a cache and a reader."""
    monkeypatch.setattr(remembered, "SETTLED", -1e18)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    return tmp_path / "a", tmp_path / "b", tmp_path / "cache.json", Reader()


def test_a_file_is_read_once_until_it_changes(world):
    one, other, cache, reader = world
    assert remember(cache, [one, other], reader) == {one: "a", other: "b"}
    assert remember(cache, [one, other], reader) == {one: "a", other: "b"}
    assert reader.asked == ["a", "b"]
    kept = one.stat()
    one.write_text("c")
    os.utime(one, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as large, and as old by what it says
    assert remember(cache, [one, other], reader) == {one: "c", other: "b"}
    assert reader.asked == ["a", "b", "a"]


def test_a_file_that_takes_the_place_of_another_is_read(world):
    one, other, cache, reader = world
    remember(cache, [one], reader)
    os.replace(other, one)
    assert remember(cache, [one], reader) == {one: "b"}


def test_a_file_that_has_just_changed_is_read_again(world, monkeypatch):
    one, _, cache, reader = world
    monkeypatch.setattr(remembered, "SETTLED", 3.6e12)
    remember(cache, [one], reader)
    assert remember(cache, [one], reader) == {one: "a"}
    assert reader.asked == ["a", "a"]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"x": 5}', '{"x": [1]}', "5"])
def test_a_damaged_cache_is_made_anew(world, text):
    one, _, cache, reader = world
    cache.write_text(text)
    assert remember(cache, [one], reader) == {one: "a"}
    assert list(json.loads(cache.read_text())) == [str(one)]


def test_an_error_is_not_kept_and_what_was_found_before_it_is(world):
    one, other, cache, reader = world
    other.unlink()
    other.mkdir()
    with pytest.raises(IsADirectoryError):
        remember(cache, [one, other], reader)
    assert list(json.loads(cache.read_text())) == [str(one)]


def test_files_that_are_gone_are_forgotten(world):
    one, other, cache, reader = world
    remember(cache, [one], reader)
    one.unlink()
    remember(cache, [other], reader)
    assert list(json.loads(cache.read_text())) == [str(other)]


def test_what_cannot_be_kept_is_found_again(world):
    one, other, _, reader = world
    for _ in range(2):
        assert remember(other / "no folder/cache.json", [one], reader) == {one: "a"}
    assert reader.asked == ["a", "a"]
