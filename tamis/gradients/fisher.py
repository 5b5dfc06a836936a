"""Fisher information of every parameter: how strongly single examples pull at it.

Symbols: g_n = gradient of the response-token negative log-likelihood of example n, model in eval mode; F[k] =
mean over n of g_nk^2, the diagonal of the empirical Fisher information (labels from the data, not from the model).
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor, nn

from tamis.gradients.layers import cover
from tamis.gradients.per_example import GradientError, accumulate, start_sums
from tamis.language.batches import Batch, split


def fisher_information(
    model: nn.Module, batches: Sequence[Batch], keep: Collection[str] | None = None, loss_per: str = "row"
) -> dict[str, Tensor]:
    """Return F[k] = (1/N) sum_n g_nk^2 of N examples, by parameter name.

    **Source**: the empirical Fisher information by which FISH Mask chooses parameters (Sung, Nair and Raffel 2021,
    arXiv 2111.09839). Differs: of a response, the mean over its tokens is taken, as in every other score here,
    so that long responses weigh no more than short ones; their sum where the training counts each token alike.

    Cost: a forward-backward pass per example, each alone, for a square of a sum is no sum of squares, and a short
    probe before each; memory: F, one gradient, and the activations of an example.

    Args:
        model: a causal language model in eval mode; parameters with `requires_grad` are covered.
        batches: of the examples, each once (`plan_batches`); they are taken apart.
        keep: names of parameters that are wanted; None: all trainable ones.
        loss_per: `row` or `token`: g_n is of the mean over the example's answer tokens, or of their sum.

    Returns:
        Tensors, none below 0, float32 or the weights' dtype where that is wider.

    Raises:
        ValueError: no example; and as `tamis.gradients.per_example.accumulate`.
        GradientError: a loss or a gradient that is not finite, with the example.
    """
    examples = [one for batch in batches for one in split(batch)]
    if not examples:
        raise ValueError("0 examples, so Fisher information is not known; give some")
    covers = cover(model)
    F, g = (start_sums(model, covers, keep) for _ in range(2))
    for one in examples:
        try:
            accumulate(model, [replace(one, examples=[0])], G=g, loss_per=loss_per)
        except GradientError as error:
            raise GradientError(one.examples, len(examples)) from error
        for name, tensor in g.items():
            F[name].addcmul_(tensor, tensor)
            tensor.zero_()
    for tensor in F.values():
        tensor.div_(len(examples))
    return F
