"""Settings of the stage `evaluation`."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.settings import Seed, checked


@checked
class EvaluationSettings:
    """How arms are compared."""

    new_tokens: Annotated[int, Field(ge=1)] = Field(64, description="tokens generated per held-out row, at most")
    generated_rows: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="held-out rows of the version that are answered in generated text, for ROUGE-L, similarity and the "
        "task metric, drawn by topic; null: all; losses are always of all rows",
    )
    demos: Annotated[int, Field(ge=0)] = Field(
        2, description="demonstrations per row of the in-context learner, which trains nothing; 0 leaves it out"
    )
    task_metric: Literal["none", "exact_match", "pass_at_1"] = Field(
        "none", description="right or wrong, beside the loss: the answer's number | its code's tests (fields.tests)"
    )
    bootstrap: Annotated[int, Field(ge=1)] = Field(
        2000, description="resamples of the held-out rows and, in arms with several, of the seeds"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of the intervals")
    seed: Seed = Field(0, description="of the resamples, and of the rows that are answered")
