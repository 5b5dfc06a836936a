"""Settings of the stage `scores`."""

from typing import Annotated

from pydantic import Field

from tasks.settings import Seed, Share, checked


@checked
class LessSettings:
    """How selector `less` warms up and projects gradients (LESS, arXiv 2402.04333, whose values are in brackets)."""

    dimensions: Annotated[int, Field(ge=1)] = Field(
        1024, description="of a projected gradient, two of which are kept per row and epoch (8192)"
    )
    warmup_share: Share = Field(
        0.05, description="of the ground set that the warm-up trains on, 8 rows at least (0.05)"
    )
    epochs: Annotated[int, Field(ge=1)] = Field(1, description="of the warm-up; gradients are taken after each (4)")
    batch_rows: Annotated[int, Field(ge=1)] = Field(
        1, description="rows per optimiser step: 8 rows in one step would leave Adam's moments empty"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="its peak (2e-5)")
    lora_rank: Annotated[int, Field(ge=1)] = Field(16, description="of its adapters, alpha twice that (128, alpha 512)")


@checked
class IcaSettings:
    """What selector `ica` shows before each row (in-context approximation, arXiv 2510.14459)."""

    demos: Annotated[int, Field(ge=1)] = Field(
        3, description="rows of the target task, or that validate, shown as earlier turns: drawn once for all rows"
    )


@checked
class TovSettings:
    """How selector `tov` tunes on the target task's rows, or those that validate (arXiv 2510.00386)."""

    epochs: Annotated[int, Field(ge=1)] = Field(1, description="passes over these rows")
    batch_rows: Annotated[int, Field(ge=1)] = Field(1, description="rows per optimiser step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="its peak")
    lora_rank: Annotated[int, Field(ge=1)] = Field(16, description="of its adapters, alpha twice that")


@checked
class ScoresSettings:
    """How rows are scored one by one, for the selectors that sort by a score."""

    less: LessSettings = Field(default_factory=LessSettings, description="of selector less")
    ica: IcaSettings = Field(default_factory=IcaSettings, description="of selector ica")
    tov: TovSettings = Field(default_factory=TovSettings, description="of selector tov")
    seed: Seed = Field(
        0, description="of less and tov: the rows of a warm-up, their order, adapters, projection; of ica: the demos"
    )
