"""The project that the desk shows: its catalogue opened once and again when an artifact is another one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st

from flows import params
from flows.params import Params
from flows.stage import show_lines
from tasks.decisions import FOLDER, NAME

ROOT = Path(".")
TOLD = "told"  # what a page says above itself once, in its session
GIGABYTES = 1.5  # of memory that a page's questions may take


@dataclass(frozen=True)
class Opened:
    """The catalogue as it is now."""

    artifacts: Any  # of tasks.catalogue.sources
    made: list[str]  # versions that have examples and a choice, in the order of params.yaml
    values: Params
    known: dict[tuple[str, str], list[str]]  # what was asked before of a version: its topics, sources and scores

    @contextmanager
    def connection(self, **more: Any) -> Iterator[Any]:
        """Yield a database with the catalogue's views, and tables that a page brings, and nothing else."""
        from tasks.artifacts.views import opened

        views = {**self.artifacts.views, **more}
        with opened(views, derived=self.artifacts.derived, gigabytes=GIGABYTES) as connection:
            yield connection

    def list_values(self, connection: Any, version: str, column: str) -> list[str]:
        """Return a version's topics, sources or scores, each asked of the database once."""
        from tasks.browsing.filters import list_values

        if (version, column) not in self.known:
            self.known[version, column] = list_values(connection, version, column)
        return self.known[version, column]

    def has(self, *views: str) -> bool:
        """Return whether the catalogue has these views; a line says which ones it lacks."""
        lacking = [name for name in views if name not in {*self.artifacts.views, *self.artifacts.derived}]
        if lacking and not self.artifacts.broken:
            st.info(f"No version has made {', '.join(lacking)} yet. `tamis run` makes them.")
        elif lacking:
            st.info(f"Nothing of {', '.join(lacking)} can be shown while what is named above cannot be read.")
        return not lacking


def open_project() -> Opened:
    """Return the catalogue, read anew where a file is another one than at the last call.

    Raises:
        ArtifactError: there are no artifacts.
        ParamsError: params.yaml cannot be read.
    """
    paths = [
        *ROOT.glob("data/*/version=*/*.parquet"),
        *ROOT.glob("data/approvals.jsonl"),
        *ROOT.glob(f"{FOLDER}/*/{NAME}"),
        ROOT / "params.yaml",
    ]
    return _open(tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(paths)))


@st.cache_resource(max_entries=2, show_spinner=False)
def _open(state: tuple) -> Opened:
    from tasks.catalogue.sources import find_artifacts

    values = params.read(bare=True)
    found = find_artifacts(ROOT, {name: vars(one) for name, one in values.versions.items()})
    made = [
        version for version in values.versions if all((ROOT / f"data/{place}").exists() for place in _needed(version))
    ]
    return Opened(found, made, values, {})


def _needed(version: str) -> tuple[str, str]:
    return f"examples/version={version}/examples.parquet", f"selection/version={version}/subset.parquet"


def show_words(text: str, place: Any = st) -> None:
    """Show lines with words of the data in them, which can neither hide nor turn around what the desk says beside them.

    Args:
        text: of one or more lines.
        place: of Streamlit, such as a column; the page.
    """
    place.text(show_lines(text))


def tell_broken(project: Opened) -> None:
    """Show which artifacts cannot be read."""
    for name, why in project.artifacts.broken.items():
        st.error(f"The view {name} cannot be read.", icon=None)
        show_words(why)


def choose_version(project: Opened, label: str = "Version", key: str = "version", *, place: int = -1) -> str | None:
    """Let the reader choose a version that is made; None, and a line that says so: there is none.

    Args:
        project: what the desk shows.
        label: of the field.
        key: of the field in a link.
        place: of the version that is chosen at first.
    """
    if not project.made:
        st.info("No data version has a choice yet. Run `tamis run`, then look again.")
        return None
    asked, newest = st.query_params.get(key, ""), project.made[max(0, len(project.made) + place)]
    if asked and asked not in project.made:
        show_words(f"There is no version {asked} that is made; this is {newest}.")
    options = ["", *project.made]  # none named: by its place, whichever that is when a link is opened
    return st.selectbox(label, options, key=key, bind="query-params", format_func=partial(_name, newest)) or newest


def choose(field: Callable[..., str], label: str, options: Sequence[str], *, key: str, **more: Any) -> str:
    """Let the reader choose in a field that a link keeps; a line says where a link asks for what is not offered.

    Args:
        field: of Streamlit, such as `st.selectbox`.
        label: of the field.
        options: that it offers.
        key: of the field in a link.
        more: of the field.
    """
    asked = st.query_params.get(key, "")
    if asked and asked not in options:
        show_words(f"The link asks for {asked} as {label.lower()}, which is not offered here; this is {options[0]}.")
    return field(label, options, key=key, bind="query-params", **more)


def tell_number(key: str, label: str, *, most: int | None = None) -> None:
    """Say where a link asks in a field for what is no number, or for one that the field does not go to.

    Args:
        key: of the field in a link.
        label: of the field.
        most: of a field that counts from 1; None: any number will do.
    """
    asked = st.query_params.get(key, "")
    try:
        value = float(asked or "1")
        fits = math.isfinite(value) if most is None else value.is_integer() and 1 <= value <= most
    except ValueError:
        fits = False
    if not fits:
        kind = "is no number" if most is None else f"is none of 1 to {most:,}"
        show_words(f"The link asks for {asked} as {label.lower()}, which {kind}; it is left out.")


def _name(newest: str, version: str) -> str:
    return version or f"{newest}, until a newer version is made"


def remember(text: str) -> None:
    """Run the page again, with what was recorded shown in it, and a line that says so."""
    st.session_state[TOLD] = text
    st.rerun()


def tabulate(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table for a picture: as a list, each of its values would be checked against Vega's schema."""
    return pa.Table.from_pylist([dict(row) for row in rows])
