"""The selectors, once: what each reads, whether it has an objective, whether it draws, and where it is published."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Selector:
    """A way to choose rows."""

    reads: str | None  # the stage whose artifact it reads besides the examples
    objective: bool  # it maximises an objective over similarities; else it sorts or draws
    draws: bool  # it draws by chance, whatever the optimiser
    source: str  # where it is published
    references: bool = False  # it scores rows beside those of the target task or, without one, those that validate


WEIGHED = ("delift", "embedding")  # selectors with a choice of objective, and of a quality of demos
CHANCE = ("random", "balanced", "fresh")  # selectors that know nothing of the rows
GATES = {"ifd": "scores", "help": "utility", "agreement": "embedding"}  # gate -> the stage that scores rows for it

SELECTORS = {
    "delift": Selector("utility", True, False, "DELIFT, arXiv 2411.04425"),
    "random": Selector(None, False, True, "chance"),
    "balanced": Selector(None, False, True, "chance, of every topic or source alike"),
    "fresh": Selector(None, False, True, "chance, anew in every epoch: RS2, arXiv 2305.18424"),
    "longest": Selector(None, False, False, "arXiv 2402.04833"),
    "embedding": Selector("embedding", True, False, "DELIFT's model-independent form, arXiv 2411.04425"),
    "perplexity": Selector("scores", False, False, "arXiv 2309.04564"),
    "ifd": Selector("scores", False, False, "arXiv 2308.12032"),
    "selectit": Selector("scores", False, False, "arXiv 2402.16705"),
    "deft_ucs": Selector("embedding", False, True, "arXiv 2310.16776"),
    "less": Selector("scores", False, False, "arXiv 2402.04333"),
    "ica": Selector("scores", False, False, "arXiv 2510.14459", references=True),
    "tov": Selector("scores", False, False, "arXiv 2510.00386", references=True),
    "rds": Selector("scores", False, False, "RDS+, arXiv 2503.01807", references=True),
    "bm25": Selector(None, False, False, "Robertson and Zaragoza 2009", references=True),
    "probes": Selector("utility", False, False, "arXiv 2604.25132, on DELIFT's utility"),
    "dualsft": Selector("gradients", False, False, "DualSFT, arXiv 2605.06166"),
    "dualsft_cover": Selector("gradients", True, False, "ours, on the gradients of DualSFT, arXiv 2605.06166"),
}


def reads_pairs(selector: str, quality: str) -> bool:
    """Return whether rows are chosen by scored pairs: similarities of delift, or the quality of demos of embedding.

    >>> reads_pairs("delift", "none"), reads_pairs("embedding", "help"), reads_pairs("embedding", "none")
    (True, True, False)
    """
    return SELECTORS[selector].reads == "utility" or (selector == "embedding" and quality != "none")


def list_read(selector: str, gate: Mapping[str, Any] | None, quality: str = "none") -> set[str]:
    """Return the stages whose scores, pairs or vectors a selector, its quality of demos and the gate before it read.

    >>> sorted(list_read("perplexity", {"by": "help", "drop": 0.2})), list_read("random", None)
    (['scores', 'utility'], set())
    """
    read = {SELECTORS[selector].reads, GATES[gate["by"]] if gate else None}
    return {stage for stage in read if stage is not None} | ({"utility"} if reads_pairs(selector, quality) else set())


def reads_vectors(selector: str, gate: Mapping[str, Any] | None, quality: str, kernel: str) -> bool:
    """Return whether rows are compared by their embeddings, to choose them or to find the pairs that are scored."""
    pairs = "utility" in list_read(selector, gate, quality) and kernel not in ("exact", "none")
    return SELECTORS[selector].reads == "embedding" or pairs


def read_only(selector: str, gate: Mapping[str, Any] | None, quality: str) -> str | None:
    """Return the quality of demos where it is all that is read of the pairs; None where they are read as they are.

    >>> read_only("embedding", None, "help"), read_only("delift", None, "help")
    ('help', None)
    """
    by_help = gate is not None and gate["by"] == "help"
    return quality if selector == "embedding" and quality != "none" and not by_help else None


def may_stratify(selector: str, objective: str, budget: Mapping[str, Any], *, targeted: bool) -> bool:
    """Return whether topics may have shares: by an objective over the pool alone, and a budget of rows.

    Where a target task is named, none may: shares would hold the target's topic down to what it is of the pool.

    >>> how = {"budget": {"count": 9}, "targeted": False}
    >>> may_stratify("embedding", "facility_location", **how), may_stratify("random", "", **how)
    (True, False)
    >>> may_stratify("dualsft_cover", "facility_location", {"count": 9}, targeted=True)
    False
    """
    by_pool = SELECTORS[selector].objective and objective != "mutual_information" and not targeted
    return by_pool and "response_tokens" not in budget


def leave_unread(settings: Any, selector: str, gate: Mapping[str, Any] | None, quality: str) -> Any:
    """Return the settings of stage `utility` without those drawn rows whose pairs nothing reads.

    Checked rows tell what a choice by the kernel misses, and only `delift` chooses by it; random rows tell a demo's
    help, to quality `help`, or to a gate where the kernel does not say which rows are near.
    """
    near = settings.kernel == "neighbours" and selector != "probes"
    by_gate = gate is not None and gate["by"] == "help" and not near
    by_quality = quality == "help" and selector in WEIGHED
    return replace(
        settings,
        check_targets=settings.check_targets if selector == "delift" else 0,
        help_targets=settings.help_targets if by_gate or by_quality else 0,
    )


def name_chooser(record: Mapping[str, Any]) -> str:
    """Return in words what chose the rows of a version: its selector, or what a pilot took instead.

    Args:
        record: selection.json.

    >>> name_chooser({"selector": "embedding", "pilot": {"decision": "mixture"}}), name_chooser({"selector": "bm25"})
    ('the mixture that a pilot took (embedding for half of the budget, then chance)', 'bm25')
    """
    selector, decision = record.get("selector", "the selector"), (record.get("pilot") or {}).get("decision")
    if decision == "chance":
        return f"chance, which a pilot took in place of {selector}"
    if decision == "mixture":
        return f"the mixture that a pilot took ({selector} for half of the budget, then chance)"
    return selector
