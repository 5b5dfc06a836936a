"""The desk's tables: what is read stands in the document, where it is searched, printed and read aloud; a grid is for
browsing."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from flows.stage import show_lines

LONGEST = 400  # characters of a cell that is read; a row's own page has all of it
STYLE = """<style>
.tamis {overflow-x: auto}
.tamis table {border-collapse: collapse; width: 100%; font-size: 0.875rem}
.tamis th, .tamis td {padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; max-width: 26rem;
    overflow-wrap: break-word; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent)}
.tamis th {font-weight: 600}
.tamis .number {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
</style>"""


def show_table(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    *,
    order: Sequence[str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> None:
    """Show rows as a table in the document; without rows a line says so.

    Args:
        rows: at most as many as a page may have.
        name: what they are, for a screen reader.
        order: of the columns; None: as they come.
        formats: of numbers, as Python writes them, by their columns.
    """
    if not rows:
        st.text("None.")
        return
    st.html(STYLE + write_html(rows, name, order=order or list(rows[0]), formats=formats or {}))


def show_grid(rows: Sequence[Mapping[str, Any]], name: str, *, order: Sequence[str] | None = None, **more: Any) -> None:
    """Show rows as a grid, which is for browsing; without rows a line says so.

    Args:
        rows: at most as many as a page may have.
        name: what they are, for a screen reader.
        order: of the columns; None: as they come.
        more: of Streamlit's grid.
    """
    if not rows:
        st.text("None.")
        return
    st.dataframe(rows, hide_index=True, width="stretch", placeholder="", column_order=order, alt=name, **more)


def write_html(
    rows: Sequence[Mapping[str, Any]], name: str, *, order: Sequence[str], formats: Mapping[str, str]
) -> str:
    """Return rows as a table of HTML in which text of data is text.

    >>> made = write_html([{"a": "<b>", "n": 1.5}, {"a": None, "n": 2}], "Rows", order=["a", "n"], formats={})
    >>> made[made.index("<tbody>") : made.index("</tbody>")]
    '<tbody><tr><td>&lt;b&gt;</td><td class="number">1.5000</td></tr><tr><td></td><td class="number">2</td></tr>'
    """
    numbers = {one for one in order if all(isinstance(row[one], (int, float, type(None))) for row in rows)}

    def cell(mark: str, column: str, text: str) -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{mark}{kind}>{escape(show_lines(text))}</{mark}>"

    head = "".join(cell("th", column, column.replace("_", " ")) for column in order)
    body = "".join(
        f"<tr>{''.join(cell('td', one, _tell(row[one], formats.get(one))) for one in order)}</tr>" for row in rows
    )
    label = escape(name, quote=True)
    return (
        f'<div class="tamis" role="region" tabindex="0" aria-label="{label}"><table aria-label="{label}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _tell(value: Any, form: str | None) -> str:
    """Return a cell's text.

    >>> [_tell(one, None) for one in (None, True, 1234, 0.25, "text")]
    ['', 'yes', '1,234', '0.2500', 'text']
    >>> _tell(0.25, "+.1f")
    '+0.2'
    """
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return format(value, form or ("," if isinstance(value, int) else ".4f"))
        case _:
            text = str(value)
            return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
