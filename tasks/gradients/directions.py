"""The direction u that gradients are scored by, read from the scratch folder a group of parameters at a time."""

from torch import Tensor

from tamis.gradients.interaction import Terms, correct_curvature, direction
from tasks import models
from tasks.artifacts.tensors import read
from tasks.gradients.settings import GradientsSettings
from tasks.gradients.warmup import Files, Work


@models.kept
def read_direction(work: Work) -> dict[str, Tensor]:
    """Return u / eta of a group of parameters on the model's device; at second order G must be whole."""
    return {name: tensor.to(models.device(work.model)) for name, tensor in make_direction(work).items()}


def make_direction(work: Work) -> dict[str, Tensor]:
    """Return u / eta of a group of parameters on the CPU."""
    G = read(work.files.total)[0] if work.settings.order == "second" else None
    return direction(read_terms(work.files, work.settings), G)


def read_terms(files: Files, settings: GradientsSettings) -> Terms:
    """Return what the direction of a group of parameters is made of, on the CPU."""
    parts = {"v_new": read(files.v_new)[0], "v_prior": read(files.v_prior)[0]}
    weights = {"lambda_new": settings.lambda_new, "lambda_prior": settings.lambda_prior}
    if settings.order == "first":
        return Terms(**parts, **weights)
    moments, facts = read(files.moments, parts["v_new"])
    c = correct_curvature(moments, settings.curvature, beta2=facts["beta2"], steps=facts["steps"])
    return Terms(**parts, **weights, c=c, eta=settings.learning_rate)
