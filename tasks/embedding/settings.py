"""Settings of the stage `embedding`."""

from typing import Annotated

from pydantic import Field

from tasks.settings import checked


@checked
class EmbeddingSettings:
    """How texts are encoded."""

    max_tokens: Annotated[int, Field(ge=1)] = Field(
        256, description="longest text encoded, tokens; longer ones are cut and counted"
    )
