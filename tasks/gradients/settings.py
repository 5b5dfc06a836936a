"""Settings of the stage `gradients` (DualSFT, arXiv 2605.06166v1)."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from tasks.settings import Seed, Share, checked


@checked
class GradientsSettings:
    """How rows and parameters are scored by gradients."""

    order: Literal["first", "second"] = Field(
        "first", description="without | with the curvature term: one | two passes over the pool"
    )
    confidence: Literal["max_prob", "entropy_inv", "uniform"] = Field(
        "max_prob", description="how much each anchor's answer is preserved"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(2.0, description="of the distillation: tau")
    lambda_new: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the validation rows' gradient in the direction"
    )
    lambda_prior: Annotated[float, Field(ge=0)] = Field(
        0.2, description="weight of the gradient of what is preserved in the direction"
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="eta: peak of the warm-up's, and in the curvature term; null: finetuning.learning_rate"
    )
    curvature: Literal["raw", "corrected"] = Field(
        "raw", description="AdamW's second moments as they are | without their bias"
    )
    warmup_share: Share = Field(
        0.1,
        description="of the pool's rows, that the warm-up trains on; at least what gradients.warmup_steps takes",
    )
    warmup_steps: Annotated[int, Field(ge=1)] = Field(
        20, description="optimiser steps of the warm-up, at least; it goes through a smaller pool more than once"
    )
    anchor_share: Share = Field(
        0.02, description="of the pool's rows, whose answers are to be preserved; a batch at least"
    )
    batch_rows: Annotated[int, Field(ge=1)] = Field(8, description="rows per optimiser step of the warm-up")
    fisher_rows: Annotated[int, Field(ge=1)] = Field(
        64, description="rows of the pool that Fisher information is averaged over"
    )
    seed: Seed = Field(0, description="of the draws, of the warm-up's order and of the sketches")


def follow_training(settings: GradientsSettings, learning_rate: float) -> GradientsSettings:
    """Return the settings with the learning rate of the training that the warm-up stands for, where they give none."""
    return settings if settings.learning_rate else replace(settings, learning_rate=learning_rate)
