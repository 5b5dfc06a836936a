"""Colours of the desk's heat maps."""

from collections.abc import Iterable

import altair as alt


def shade_signed(values: Iterable[float]) -> alt.Scale:
    """Return red for what is below 0 and blue for what is above, equally strong at equal sizes.

    >>> shade_signed([-0.02, 0.6]).domain, shade_signed([]).domain
    ([-0.6, 0.6], [-1.0, 1.0])
    """
    top = float(max(map(abs, values), default=0) or 1)
    return alt.Scale(scheme="redblue", domain=[-top, top])
