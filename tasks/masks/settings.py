"""Settings of the mask: which parameters method `masked` trains."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.settings import MaskBudget, checked


@checked
class MaskSettings:
    """How parameters are chosen, apart from rows."""

    selector: Literal["none", "dualsft", "fisher", "magnitude", "random"] = Field(
        description="what scores parameters; none: all of them, or adapters, are trained"
    )
    budget: MaskBudget = Field(
        default_factory=lambda: {"fraction": 0.1}, description="one of count: parameters | fraction: of all"
    )
    signed: bool = Field(False, description="the largest score, not the largest absolute one")
    layer_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="of the mask, divided equally over layers (DualSFT's published code)"
    )
    module_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="of the mask, divided equally over module groups: q, k, v, o, gate, up, down, ..."
    )
    update_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimiser steps after which a mask by dualsft is cut anew; null: never"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of a mask at random")
