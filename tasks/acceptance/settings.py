"""Settings of `acceptance`: what a version must reach so that an unattended run records it."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.settings import checked

LEAST = {  # what a pilot may have decided, by the least that is asked
    "choice": ("choice",),
    "mixture": ("choice", "mixture"),
    "chance": ("choice", "mixture", "chance"),
}


@checked
class AcceptanceSettings:
    """What a version must reach to be recorded by `tamis continue` and `tamis serve`; validation rows are asked."""

    loss: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="nats per token that its loss on its validation rows may exceed that of the model before, at most; "
        "null: any number",
    )
    retention: Annotated[float, Field(ge=0)] | None = Field(
        None, description="likewise on the validation rows of the version that it continues from"
    )
    pilot: Literal["choice", "mixture", "chance"] = Field(
        "chance", description="the least that a pilot may have decided, where one is on"
    )
    approval: bool = Field(
        False, description="a version is run only once a person has approved the one that it continues from"
    )
    report: str | None = Field(
        None,
        description="told of every version, and of each landed folder that cannot be added, as a JSON object: a "
        "program with arguments, without a shell, on its standard input, or a URL, by POST",
    )
