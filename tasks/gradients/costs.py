"""What gradients cost in floating-point operations, counted from the tokens of the rows that are passed."""

from collections.abc import Iterable

from tamis.evaluation.costs import FORWARD, INPUTS, TRAINING, Passed, count_rows, count_steps, sum_flops
from tasks import models
from tasks.gradients.settings import GradientsSettings
from tasks.gradients.warmup import Sets, plan_warmup


def count_passes(
    sets: Sets,
    settings: GradientsSettings,
    model: models.ModelChoice,
    *,
    kinds: Iterable[str],
    groups: int,
    again: bool,
) -> dict[str, int]:
    """Return the operations of each part of some kinds of scores, as if all of it were computed at once.

    Args:
        sets: of rows.
        settings: how the warm-up is trained.
        model: that is passed through.
        kinds: dualsft, fisher.
        groups: of parameters, each of which takes passes of its own.
        again: the pool is passed a second time, without the gradients of weights.
    """
    size = models.count_parameters(model)

    def count(name: str) -> Passed:
        return count_rows(sets.encoding.pick(getattr(sets, name)), shared=False)

    found: dict[str, int] = {}
    if "dualsft" in kinds:
        trained = count_steps(sets.encoding.pick(sets.warmup), plan_warmup(len(sets.warmup), settings))
        second = [(count("pool"), INPUTS)] if again else []
        found = {
            "warmup": sum_flops([(trained, TRAINING)], size),
            "v_new": groups * sum_flops([(count("validation"), TRAINING)], size),
            "v_prior": groups * sum_flops([(count("anchors"), TRAINING), (count("anchors"), FORWARD)], size),
            "first_pass": groups * sum_flops([(count("pool"), TRAINING)], size),
            "second_pass": groups * sum_flops(second, size),
        }
    if "fisher" in kinds:
        found["fisher"] = groups * sum_flops([(count("fisher"), TRAINING)], size)
    return found
