"""What the settings of several stages may not be together: refused by name before anything runs.

What a setting may be by itself stands with it, in `tasks/<stage>/settings.py`.
"""

from collections.abc import Collection
from fractions import Fraction
from typing import TYPE_CHECKING

from tasks.selection.selectors import CHANCE, SELECTORS, WEIGHED, list_read, reads_pairs
from tasks.settings import hint
from tasks.utility.settings import name_kernel

if TYPE_CHECKING:
    from flows.params import Params

BY_GRADIENTS = {"dualsft", "dualsft_cover", "fisher"}
STEERED = {"dualsft", "dualsft_cover"}  # of them, those that score by validation rows


class ParamsError(ValueError):
    """params.yaml cannot be used as it is written."""


def refuse_unknown(version: str, versions: Collection[str]) -> None:
    """Raise ParamsError where there is no such data version."""
    if version not in versions:
        raise ParamsError(f"there is no data version {version!r}; params.yaml has {', '.join(versions)}")


def refuse_contradictions(values: "Params") -> None:
    """Refuse settings that contradict each other.

    Raises:
        ParamsError: naming both, and the ways out.
    """
    _check_products(values)
    _check_sources(values)
    _check_tests(values)
    _check_references(values)
    _check_gate(values)
    _check_pilot(values)
    _check_objective(values)
    _check_mask(values)
    _check_gradients(values)
    _check_acceptance(values)


def _check_products(values: "Params") -> None:
    """Refuse a way of multiplying that does nothing."""
    asked = values.models
    if asked.matmul == "float32":
        return
    if asked.dtype != "float32":
        raise ParamsError(
            f"models.matmul is {asked.matmul} and models.dtype {asked.dtype}; it is of float32 weights: set "
            "models.matmul: float32 or models.dtype: float32"
        )
    if asked.device == "cuda":
        raise ParamsError(
            f"models.matmul is {asked.matmul} and models.device cuda; it is of CPUs: set models.matmul: float32, or "
            "models.dtype: bfloat16"
        )


def _check_sources(values: "Params") -> None:
    """Refuse sources of a version that is not there."""
    for version in values.examples.sources:
        if version not in values.versions:
            known = ", ".join(values.versions)
            raise ParamsError(
                f"examples.sources names {version!r}{hint(version, values.versions)}, which is no version; there are "
                f"{known}"
            )


def _check_tests(values: "Params") -> None:
    if values.evaluation.task_metric == "pass_at_1" and "tests" not in values.examples.fields:
        raise ParamsError(
            "evaluation.task_metric is pass_at_1 but examples.fields names no tests; name the field that holds each "
            "row's tests, such as tests: test_list"
        )


def _check_references(values: "Params") -> None:
    """Refuse a selector that scores rows beside others where there are none."""
    selector, examples = values.selection.selector, values.examples
    if SELECTORS[selector].references and examples.target is None and examples.validation_every is None:
        raise ParamsError(
            f"selection.selector is {selector}, which scores rows beside reference rows, and examples.target and "
            "examples.validation_every are null; name the target task's rows, such as {topic: NAME, rows: 32}, or set "
            "examples.validation_every: 10"
        )


def _check_gate(values: "Params") -> None:
    """Refuse a gate that leaves too few rows, or knows too few of them."""
    gate, fraction = values.selection.gate, values.selection.budget.get("fraction", 0)
    if gate is None:
        return
    if gate["beyond"] is None and sum(Fraction(str(share)) for share in (fraction, gate["drop"])) > 1:
        raise ParamsError(
            f"selection.budget is fraction: {fraction} of the used pool, of which selection.gate takes "
            f"{gate['drop']} out before; lower one of them, together they are at most 1"
        )
    if fraction == 1:
        raise ParamsError(
            f"selection.budget is fraction: {fraction}, all of the used pool, of which selection.gate takes what looks "
            "wrong out before; set selection.gate: null to choose from all rows, or lower the budget"
        )
    if values.selection.selector == "fresh":
        raise ParamsError(
            "selection.selector is fresh, which draws other rows of the whole pool in every epoch, and knows nothing "
            "of selection.gate; set selection.gate: null or selection.selector: random"
        )
    if gate["by"] == "help" and name_kernel(values.selection.selector, values.utility) == "landmarks":
        raise ParamsError(
            "selection.gate is by help and utility.kernel is landmarks, which scores some rows as demos and no others; "
            "set utility.kernel: neighbours, or selection.gate by ifd or agreement"
        )


def _check_pilot(values: "Params") -> None:
    """Refuse a pilot that has nothing to measure on, or nothing to compare with chance."""
    chosen, examples = values.selection, values.examples
    if chosen.pilot is None:
        return
    if examples.target is None and examples.validation_every is None:
        raise ParamsError(
            "selection.pilot measures on validation rows, and examples.validation_every and examples.target are null; "
            "set examples.validation_every: 10, or name the target task's rows"
        )
    if chosen.selector in CHANCE:
        raise ParamsError(
            f"selection.pilot compares the choice with chance, and selection.selector is {chosen.selector}, which is "
            "chance; set selection.pilot: null or another selector"
        )
    if values.finetuning.method != "lora" and values.models.dtype == "float16":
        raise ParamsError(
            f"selection.pilot trains by finetuning.method {values.finetuning.method}, in which float16 weights "
            "underflow; set models.dtype: bfloat16, or selection.pilot: null"
        )


def _check_objective(values: "Params") -> None:
    """Refuse what selection would refuse after hours of scoring."""
    chosen, utility = values.selection, values.utility
    weighed = chosen.selector in WEIGHED
    if weighed and chosen.objective == "mutual_information" and values.examples.target is None:
        raise ParamsError(
            "selection.objective is mutual_information but examples.target is null; name the target task's rows, such "
            "as {topic: NAME, rows: 32}"
        )
    if weighed and chosen.quality == "neighbours" and utility.kernel != "neighbours":
        raise ParamsError(
            f"selection.quality is neighbours but utility.kernel is {utility.kernel}, whose pairs do not say which "
            "rows are near; set utility.kernel: neighbours or selection.quality: help"
        )
    if chosen.selector == "embedding" and chosen.quality == "help" and utility.kernel == "landmarks":
        raise ParamsError(
            "selection.quality is help and utility.kernel is landmarks, which scores some rows as demos and no others, "
            "so that of most rows no help is known; set utility.kernel: neighbours, or none with help_targets: 8"
        )
    _check_no_kernel(values)
    count = chosen.budget.get("count", 0)
    if chosen.selector == "delift" and utility.kernel == "landmarks" and count > utility.landmarks:
        raise ParamsError(
            f"selection.budget is count: {count}, but kernel landmarks scores {utility.landmarks} demos, and no others "
            "can be chosen; raise utility.landmarks or lower the budget"
        )


def _check_no_kernel(values: "Params") -> None:
    """Refuse to choose by pairs of which none are scored."""
    chosen, utility = values.selection, values.utility
    read = list_read(chosen.selector, chosen.gate, chosen.quality)
    if name_kernel(chosen.selector, utility) != "none" or "utility" not in read:
        return
    if chosen.selector == "delift":
        raise ParamsError(
            "utility.kernel is none and selection.selector delift, which chooses by a kernel of pairs; set "
            "utility.kernel: neighbours or selection.selector: embedding"
        )
    if not utility.help_targets:
        by_quality = reads_pairs(chosen.selector, chosen.quality)
        by = f"quality is {chosen.quality}" if by_quality else "gate is by help"
        raise ParamsError(
            f"selection.{by}, but utility.kernel none and utility.help_targets 0 score no pair; "
            "set utility.help_targets: 8 or utility.kernel: neighbours"
        )


def _check_mask(values: "Params") -> None:
    """Refuse a mask that cannot be cut, and a training that has none or does not use it."""
    mask, method = values.mask, values.finetuning.method
    if mask.layer_share + mask.module_share > 1:
        raise ParamsError(
            f"mask.layer_share is {mask.layer_share} and mask.module_share {mask.module_share}; together they are at "
            "most 1"
        )
    if (method == "masked") != (mask.selector != "none"):
        raise ParamsError(
            f"finetuning.method is {method} and mask.selector is {mask.selector}; method masked trains what "
            "mask.selector chooses: set both, or mask.selector: none and another method"
        )
    if mask.update_steps is not None and mask.selector != "dualsft":
        raise ParamsError(
            f"mask.update_steps is {mask.update_steps} and mask.selector is {mask.selector}; only a mask by dualsft is "
            "cut anew: set update_steps: null"
        )


def _check_gradients(values: "Params") -> None:
    """Refuse gradients that underflow, or have nothing to steer by."""
    asked = {values.selection.selector, values.mask.selector}
    if values.models.dtype == "float16" and (asked & BY_GRADIENTS or values.mask.selector != "none"):
        raise ParamsError(
            "models.dtype is float16, in which gradients and second moments underflow to 0; set bfloat16 or float32"
        )
    if asked & STEERED and values.examples.target is None and values.examples.validation_every is None:
        raise ParamsError(
            f"{' and '.join(sorted(asked & STEERED))} needs rows that steer it, and examples.validation_every and "
            "examples.target are null; set examples.validation_every: 10, or name the target task's rows"
        )


def _check_acceptance(values: "Params") -> None:
    """Refuse gates on validation rows where there are none."""
    asked = [name for name in ("loss", "retention") if getattr(values.acceptance, name) is not None]
    if asked and values.examples.validation_every is None:
        raise ParamsError(
            f"acceptance.{asked[0]} is asked on validation rows, and examples.validation_every is null; set it to 10, "
            f"or acceptance.{asked[0]}: null"
        )
