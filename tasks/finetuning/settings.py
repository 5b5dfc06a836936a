"""Settings of the stage `finetuning`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tasks.settings import Share, checked

Arm = Literal["chosen", "random", "balanced", "fresh", "full"]


def refuse_arms(arms: Mapping[str, list[int]]) -> Mapping[str, list[int]]:
    """Return the arms, where each has its seeds and `chosen` is among them.

    Raises:
        ValueError: saying what is wrong with them, after the setting's name.
    """
    for arm, seeds in arms.items():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"has {arm}: {seeds}; give a list of different seeds, such as [0]")
    if "chosen" not in arms:
        raise ValueError("lacks chosen, the rows that selection chose; give it its seeds, such as chosen: [0]")
    return arms


@checked
class FinetuningSettings:
    """How every arm is trained."""

    method: Literal["lora", "full", "masked"] = Field(
        "lora", description="adapters | all weights | the parameters of the mask"
    )
    arms: Annotated[Mapping[Arm, list[Annotated[int, Field(ge=0)]]], AfterValidator(refuse_arms)] = Field(
        default_factory=lambda: {"chosen": [0]},
        description="arm -> seeds of training: chosen; random: as many random rows, which shows what chance does; "
        "balanced: of every topic alike, or of every source where there is one topic; fresh: other random rows in "
        "every epoch; full: the whole pool",
    )
    replay: Literal["none", "subset", "all"] = Field(
        "none", description="what every arm repeats of earlier versions: | chosen | offered rows"
    )
    epochs: Annotated[int, Field(ge=1)] = Field(3, description="passes over an arm's rows")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="peak of a linear schedule with warm-up")
    lr_warmup_fraction: Share = Field(0.1, description="of the optimiser steps over which the learning rate rises")
    batch_rows: Annotated[int, Field(ge=1)] = Field(8, description="examples per optimiser step")
    loss_per: Literal["row", "token"] = Field(
        "row",
        description="what counts alike in a step's loss, and in every gradient of DualSFT and Fisher information: "
        "each row, whatever its length (DualSFT) | each response token, so that long responses count more",
    )
    lora_rank: Annotated[int, Field(ge=1)] = Field(16, description="width of the adapters")
    lora_alpha: Annotated[int, Field(ge=1)] = Field(32, description="their scale times their rank")
    save_steps: Annotated[int, Field(ge=1)] = Field(20, description="optimiser steps between checkpoints")
    whole_model: bool = Field(False, description="write arm chosen as a whole model folder, too")
