"""Settings of the stage `utility`."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.settings import Seed, checked


@checked
class ProbesSettings:
    """Which rows selector `probes` measures the help of each row on (arXiv 2604.25132)."""

    nearest: Annotated[int, Field(ge=1)] = Field(32, description="rows by embedding that they are picked from")
    clusters: Annotated[int, Field(ge=1)] = Field(5, description="of these; of each the hardest are picked, in turn")
    probes: Annotated[int, Field(ge=1)] = Field(16, description="rows that each row is shown before")


@checked
class UtilitySettings:
    """How pairs are chosen and scored."""

    kernel: Literal["exact", "neighbours", "landmarks", "none"] = Field(
        "neighbours",
        description="all pairs | each target's nearest demos by embedding | few demos | no pair but those of "
        "help_targets, for selector embedding with a quality",
    )
    neighbours: Annotated[int, Field(ge=1)] = Field(
        32,
        description="demos per target, itself not counted; where selector embedding reads a demo's help alone, targets "
        "per demo",
    )
    landmarks: Annotated[int, Field(ge=1)] = Field(
        64, description="demos that kernel landmarks scores; no others can be chosen"
    )
    landmark_targets: Annotated[int, Field(ge=1)] | None = Field(
        None, description="targets that landmarks are scored on; null: all"
    )
    check_targets: Annotated[int, Field(ge=0)] = Field(
        16, description="targets scored with every demo, to know the kernel's error; of selector delift"
    )
    help_targets: Annotated[int, Field(ge=0)] = Field(
        0,
        description="random rows of the target task, or of the pool where there is none, that each demo is scored with "
        "besides; they tell its help (selection.quality: help, or a gate by it) and are no part of the kernel",
    )
    answer_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of a target that are scored, the first ones; null: all. A demo is always shown whole"
    )
    distance: Literal["probability", "log_likelihood"] = Field(
        "probability", description="root mean square of 1 - p (DELIFT, equation 1) | mean log p (its KL form)"
    )
    diagonal: Literal["capped", "scored", "excluded"] = Field(
        "capped",
        description="what a row shown before itself counts for in selection: no more than the best other demo | as it "
        "is scored, which measures copying (DELIFT) | nothing",
    )
    probes: ProbesSettings = Field(default_factory=ProbesSettings, description="of selector probes, in place of kernel")
    seed: Seed = Field(
        0, description="of the targets drawn for landmarks, for the check and for help, and of clusters of probes"
    )


def name_kernel(selector: str, settings: UtilitySettings) -> str:
    """Return which pairs are scored: those of the kernel, or of selector `probes`.

    >>> name_kernel("delift", UtilitySettings()), name_kernel("probes", UtilitySettings())
    ('neighbours', 'probes')
    """
    return "probes" if selector == "probes" else settings.kernel
