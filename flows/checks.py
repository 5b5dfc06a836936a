"""What the parameters of params.yaml may be, alone and together: refused by name before anything runs."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from flows.sections import Number

TARGETS = ("topic", "path")
BY_OBJECTIVE = ("delift", "embedding")  # selectors that have an objective
ARMS = ("chosen", "random", "full")
AT_LEAST = {
    "models.max_tokens": 1,
    "examples.held_out_in": 2,
    "examples.pool_rows": 1,
    "examples.held_out_rows": 1,
    "embedding.batch_rows": 1,
    "embedding.max_tokens": 1,
    "utility.neighbours": 1,
    "utility.landmarks": 1,
    "utility.landmark_targets": 1,
    "utility.check_targets": 0,
    "utility.shard_pairs": 1,
    "utility.pack_tokens": 1,
    "scores.shard_rows": 1,
    "scores.pack_tokens": 1,
    "scores.less_dimensions": 1,
    "scores.less_epochs": 1,
    "scores.less_batch_rows": 1,
    "scores.less_lora_rank": 1,
    "gradients.batch_rows": 1,
    "gradients.shard_rows": 1,
    "gradients.pack_tokens": 1,
    "gradients.block_parameters": 1,
    "gradients.fisher_rows": 1,
    "gradients.lambda_new": 0,
    "gradients.lambda_prior": 0,
    "selection.partitions": 1,
    "selection.eta": 0,
    "selection.nu": 0,
    "finetuning.epochs": 1,
    "finetuning.batch_rows": 1,
    "finetuning.lora_rank": 1,
    "finetuning.lora_alpha": 1,
    "finetuning.save_steps": 1,
    "finetuning.rescore_every": 1,
    "evaluation.new_tokens": 1,
    "evaluation.demos": 0,
    "evaluation.bootstrap": 1,
}
SHARES = (
    "scores.less_warmup_share",
    "gradients.warmup_share",
    "gradients.anchor_share",
    "gradients.validation_share",
    "finetuning.warmup_fraction",
    "evaluation.confidence",
    "audit.held_out_share",
)
ABOVE_ZERO = ("scores.less_learning_rate", "gradients.eta", "gradients.tau", "finetuning.learning_rate")


class ParamsError(ValueError):
    """params.yaml cannot be used as it is written."""


def check(sections: Mapping[str, Any]) -> None:
    """Refuse values that are out of range or contradict each other.

    Raises:
        ParamsError: naming the value, what was found, and what is allowed.
    """
    _check_ranges(sections)
    _check_budget(sections["selection"].budget)
    _check_target(sections["examples"].target)
    if sections["evaluation"].task_metric == "pass_at_1" and "tests" not in sections["examples"].fields:
        raise ParamsError(
            "evaluation.task_metric is pass_at_1 but examples.fields names no tests; name the field that holds each "
            "row's tests, such as tests: test_list"
        )
    _check_objective(sections)
    _check_mask(sections)
    _check_gradients(sections)
    _check_arms(sections["finetuning"].arms)


def _check_ranges(sections: Mapping[str, Any]) -> None:
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in vars(section).items()}
    for name, least in AT_LEAST.items():
        if values[name] is not None and values[name] < least:
            raise ParamsError(f"{name} is {values[name]}; it must be at least {least}")
    for name in SHARES:
        if not 0 <= values[name] < 1:
            raise ParamsError(f"{name} is {values[name]}; it is a fraction, at least 0 and below 1")
    if not 0 < values["selection.epsilon"] < 1:
        raise ParamsError(f"selection.epsilon is {values['selection.epsilon']}; it is between 0 and 1")
    for name in ABOVE_ZERO:
        if not values[name] > 0:
            raise ParamsError(f"{name} is {values[name]}; it must be above 0")
    for name, counts in (("caps", values["selection.caps"]), ("floors", values["selection.floors"])):
        for topic, count in counts.items():
            if count < 0:
                raise ParamsError(f"selection.{name}.{topic} is {count}; rows are counted from 0")


def _check_budget(budget: Mapping[str, Number]) -> None:
    kinds = ("count", "fraction", "response_tokens")
    refuse_unknown(budget, kinds, "selection.budget")
    if len(budget) != 1:
        raise ParamsError(f"selection.budget has {len(budget)} kinds ({dict(budget)}); give one of {', '.join(kinds)}")
    ((kind, value),) = budget.items()
    if not value > 0:
        raise ParamsError(f"selection.budget is {kind}: {value}, which chooses nothing; it must be above 0")
    if kind == "fraction" and value > 1:
        raise ParamsError(f"selection.budget is fraction: {value}, over 100% of the pool; 0.3 stands for 30%")
    if kind != "fraction" and not isinstance(value, int):
        raise ParamsError(f"selection.budget is {kind}: {value}; it must be a whole number")


def _check_target(target: Mapping[str, Any] | None) -> None:
    if target is None:
        return
    refuse_unknown(target, (*TARGETS, "rows"), "examples.target")
    given = [key for key in TARGETS if key in target]
    if len(given) != 1 or not isinstance(target[given[0]], str):
        raise ParamsError(
            f"examples.target is {dict(target)}; give the target task's rows by topic: NAME (rows of the pool) or by "
            "path: NAME (a file or folder inside the version's raw folder), or null"
        )
    rows = target.get("rows")
    if rows is not None and ("path" in target or not isinstance(rows, int) or rows < 1):
        raise ParamsError(
            f"examples.target.rows is {rows!r}; with topic it is at least 1 or null for all; with path all are taken"
        )


def _check_objective(sections: Mapping[str, Any]) -> None:
    """Refuse what selection would refuse after hours of scoring."""
    chosen, count = sections["selection"], sections["selection"].budget.get("count", 0)
    aim = chosen.rows_by in BY_OBJECTIVE and chosen.objective == "mutual_information"
    if aim and sections["examples"].target is None:
        raise ParamsError(
            "selection.objective is mutual_information but examples.target is null; name the target task's rows, such "
            "as {topic: NAME, rows: 32}"
        )
    utility = sections["utility"]
    if chosen.rows_by == "delift" and utility.kernel == "landmarks" and count > utility.landmarks:
        raise ParamsError(
            f"selection.budget is count: {count}, but kernel landmarks scores {utility.landmarks} demos, and no others "
            "can be chosen; raise utility.landmarks or lower the budget"
        )


def _check_mask(sections: Mapping[str, Any]) -> None:
    """Refuse a mask that cannot be cut, and a training that has none or does not use it."""
    chosen, training = sections["selection"], sections["finetuning"]
    _check_mask_budget(chosen.mask_budget)
    shares = chosen.mask_layer_share, chosen.mask_module_share
    if min(shares) < 0 or sum(shares) > 1:
        raise ParamsError(
            f"selection.mask_layer_share is {shares[0]} and mask_module_share {shares[1]}; each is at least 0, and "
            "together they are at most 1"
        )
    if (training.method == "masked") != (chosen.mask_by != "none"):
        raise ParamsError(
            f"finetuning.method is {training.method} and selection.mask_by is {chosen.mask_by}; method masked trains "
            "what mask_by chooses: set both, or mask_by: none and another method"
        )
    if training.rescore_every is not None and chosen.mask_by != "dualsft":
        raise ParamsError(
            f"finetuning.rescore_every is {training.rescore_every} and selection.mask_by is {chosen.mask_by}; only a "
            "mask by dualsft is cut anew: set rescore_every: null"
        )


def _check_gradients(sections: Mapping[str, Any]) -> None:
    """Refuse gradients that underflow, have nothing to steer by, or score fewer rows than are to be chosen."""
    chosen, asked = sections["selection"], {sections["selection"].rows_by, sections["selection"].mask_by}
    if sections["models"].dtype == "float16" and (asked & {"dualsft", "fisher"} or chosen.mask_by != "none"):
        raise ParamsError(
            "models.dtype is float16, in which gradients and second moments underflow to 0; set bfloat16 or float32"
        )
    if sections["examples"].target is not None or not asked & {"dualsft", "fisher"}:
        return
    share, fraction = sections["gradients"].validation_share, chosen.budget.get("fraction", 0)
    if not share > 0:
        raise ParamsError(
            f"gradients.validation_share is {share} and examples.target is null, so there is no validation row to "
            "steer by; raise that share or name the target task's rows"
        )
    if chosen.rows_by == "dualsft" and fraction > 1 - share:
        raise ParamsError(
            f"selection.budget is fraction: {fraction} and gradients.validation_share {share}: dualsft scores the "
            "pool without the validation rows; lower one of them or name the target task's rows (examples.target)"
        )


def _check_mask_budget(budget: Mapping[str, Number]) -> None:
    kinds = ("count", "fraction")
    refuse_unknown(budget, kinds, "selection.mask_budget")
    if len(budget) != 1:
        raise ParamsError(f"selection.mask_budget has {len(budget)} kinds ({dict(budget)}); give count or fraction")
    ((kind, value),) = budget.items()
    if not value > 0:
        raise ParamsError(f"selection.mask_budget is {kind}: {value}, which trains no parameter; it must be above 0")
    if kind == "fraction" and value > 1:
        raise ParamsError(f"selection.mask_budget is fraction: {value}, over 100% of the parameters; 0.1 is 10%")
    if kind == "count" and not isinstance(value, int):
        raise ParamsError(f"selection.mask_budget is count: {value}; it must be a whole number")


def _check_arms(arms: Mapping[str, list[int]]) -> None:
    refuse_unknown(arms, ARMS, "finetuning.arms")
    for arm, seeds in arms.items():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ParamsError(f"finetuning.arms.{arm} is {seeds}; give a list of different seeds, such as [0]")
    missing = [arm for arm in ARMS if arm not in arms]
    if missing:
        raise ParamsError(
            f"finetuning.arms lacks {', '.join(missing)}: results stand beside random rows and the full pool; "
            f"give each its seeds, such as {missing[0]}: [0]"
        )


def refuse_unknown(values: Mapping[str, Any], names: Any, where: str) -> None:
    for key in values:
        if key not in names:
            raise ParamsError(f"{where} has an unknown {key!r}{hint(key, names)}; known: {', '.join(names)}")


def hint(name: Any, names: Any) -> str:
    close = get_close_matches(str(name), [str(known) for known in names], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
