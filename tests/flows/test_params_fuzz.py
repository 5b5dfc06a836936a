"""params.yaml with anything in it: it is read, or refused by an error of ours that names a place in it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import params
from flows.params import ParamsError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.just(10**30),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["v1", "base", "../up", "package:none", "delift", "a\nb", "\ud7ff", "${x}"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def list_places(value: object, place: tuple = ()) -> Iterator[tuple]:
    """Yield where each value of nested mappings stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, key)
            yield from list_places(inner, (*place, key))


PLACES = list(list_places(yaml.safe_load(TEXT)))


def read(text: str) -> str | None:
    """Return with which error of ours a params.yaml is refused; None: it is read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        shutil.copy(ROOT / "dvc.yaml", folder)
        try:
            params.read(path, bare=True)
            params.read(path)
        except ParamsError as error:
            return str(error)
    return None


def check(text: str) -> None:
    """Raise where a params.yaml is neither read nor refused in words."""
    assert read(text) != ""


def test_the_committed_file_is_read_and_one_with_a_word_too_many_is_not():
    assert read(TEXT) is None
    assert "unknown" in read(f"{TEXT}\nmore: {{}}\n")


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_any_value_anywhere_is_read_or_refused(changes):
    values = yaml.safe_load(TEXT)
    for place, value in changes:
        inner = values
        for key in place[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[place[-1]] = value
    check(yaml.safe_dump(values, allow_unicode=True))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(TEXT)), st.integers(0, 12), st.text(max_size=5))
def test_any_edit_of_the_text_is_read_or_refused(start, length, more):
    check(TEXT[:start] + more + TEXT[start + length :])


@pytest.mark.slow
@settings(deadline=None, max_examples=10_000)
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 12), st.text(max_size=5)), max_size=4))
def test_many_edits_of_the_text_are_read_or_refused(edits):
    text = TEXT
    for start, length, more in edits:
        text = text[:start] + more + text[start + length :]
    check(text)
