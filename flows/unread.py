"""What somebody has set for a choice and a run does not read, or that tells it little: said in a line each."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from tasks.selection.selectors import CHANCE, SELECTORS, WEIGHED, leave_unread, may_stratify, reads_pairs

if TYPE_CHECKING:
    from flows.params import Params


ALONE = ("longest", "perplexity", "ifd", "selectit", "deft_ucs")  # selectors that score each row by itself
SPARSE = 3  # demos per target below which delift knows too few similarities


def list_notes(values: "Params") -> list[str]:
    """Return a line on what is set and not read, one on a target task likewise, and one on too few similarities."""
    unread, selector = list_unread(values), values.selection.selector
    notes = [f"set, and not read by selector {selector}: {', '.join(unread)}"] if unread else []
    return notes + _list_untargeted(values) + list_sparse(values, [selector])


def _list_untargeted(values: "Params") -> list[str]:
    """Return a line where a target task is named and nothing looks at its rows."""
    chosen = values.selection
    if chosen.selector in WEIGHED:
        steered = chosen.objective == "mutual_information" or chosen.quality != "none"
    else:
        steered = chosen.selector not in (*CHANCE, *ALONE)
    by_help = chosen.gate is not None and chosen.gate["by"] == "help"
    others = chosen.pilot is not None or by_help or values.mask.selector == "dualsft"
    if values.examples.target is None or steered or others:
        return []
    by = f"with objective {chosen.objective} " if chosen.selector in WEIGHED else ""
    return [
        f"examples.target keeps its rows out of the pool, and selector {chosen.selector} {by}does not look at them: "
        "set selection.objective: mutual_information with selector delift or embedding, or examples.target: null"
    ]


def list_sparse(values: "Params", selectors: Sequence[str]) -> list[str]:
    """Return a line where one of some selectors chooses by similarities of which hardly any is known."""
    few = values.utility.kernel == "neighbours" and values.utility.neighbours < SPARSE
    if "delift" not in selectors or not few:
        return []
    count = values.utility.neighbours
    return [
        f"delift knows how alike a row and another one are for {count} other row{'s' if count > 1 else ''} of each "
        "(utility.neighbours), and takes all others for unlike: set utility.neighbours: 8"
    ]


def list_unread(values: "Params") -> list[str]:
    """Return the settings of a choice of rows that are not at their default and change nothing, as `section.name`."""
    found = {f"selection.{name}" for name in _unread_of_selection(values)}
    found |= {f"utility.{name}" for name in _unread_of_utility(values)}
    return sorted(name for name in found if _is_set(values, name))


def _unread_of_selection(values: "Params") -> Iterator[str]:
    chosen = values.selection
    objective = SELECTORS[chosen.selector].objective
    informed = chosen.selector in WEIGHED and chosen.objective == "mutual_information"
    targeted = values.examples.target is not None
    if chosen.selector not in WEIGHED:
        yield from ("objective", "quality", "learnt_weight")
    if chosen.selector not in WEIGHED or chosen.quality == "none":
        yield "quality_prior"
    if not informed:
        yield from ("mutual_information", "target_weight")
    if chosen.selector != "delift":
        yield "scaling"
    if not objective:
        yield "optimiser"
    if not may_stratify(chosen.selector, chosen.objective, chosen.budget, targeted=targeted):
        yield "stratify"


def _unread_of_utility(values: "Params") -> Iterator[str]:
    chosen, asked = values.selection, values.utility
    by_gate = chosen.gate is not None and chosen.gate["by"] == "help"
    if not (reads_pairs(chosen.selector, chosen.quality) or by_gate):
        yield from (one.name for one in fields(asked))
        return
    kept = leave_unread(asked, chosen.selector, chosen.gate, chosen.quality)
    yield from (name for name in ("check_targets", "help_targets") if getattr(kept, name) != getattr(asked, name))
    if chosen.selector != "delift":
        yield "diagonal"


def _is_set(values: "Params", dotted: str) -> bool:
    section, name = dotted.split(".")
    settings = getattr(values, section)
    return getattr(settings, name) != getattr(type(settings)(), name)
