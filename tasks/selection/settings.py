"""Settings of the stage `selection`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tasks.selection.selectors import GATES, SELECTORS
from tasks.settings import RowBudget, Seed, checked, hint, spell

PILOT = {"steps": 8, "seeds": 3, "rows": 0.1}  # optimiser steps and seeds of each arm; share of the choice
GATE = ("by", "drop", "beyond")
Rows = Annotated[int, Field(ge=0)]


def refuse_gate(gate: Any) -> Mapping[str, Any] | None:
    """Return what leaves the pool before anything is chosen, where that is said.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    if gate is None:
        return None
    way = f"give by: {' or '.join(GATES)}, such as {{by: ifd, drop: 0.2}} or {{by: agreement, beyond: 2}}, or null"
    if not isinstance(gate, Mapping):
        raise ValueError(f"is {spell(gate)}; {way}")
    for key in gate:
        if key not in GATE:
            raise ValueError(f"has an unknown {key!r}{hint(key, GATE)}; known: {', '.join(GATE)}")
    found = {"drop": 0.2 if gate.get("beyond") is None else 0.5, "beyond": None, **gate}
    if str(found.get("by")) not in GATES:
        raise ValueError(f"is {dict(gate)}{hint(found.get('by'), GATES)}; {way}")
    if isinstance(found["drop"], bool) or not isinstance(found["drop"], float | int) or not 0 < found["drop"] < 1:
        raise ValueError(f"has drop: {spell(found['drop'])}; it is a share of the pool, above 0 and below 1")
    beyond = found["beyond"]
    if beyond is not None and (isinstance(beyond, bool) or not isinstance(beyond, float | int) or beyond <= 0):
        raise ValueError(f"has beyond: {spell(beyond)}; it is a number of standard deviations, above 0, or null")
    return found


def refuse_pilot(pilot: Any) -> Mapping[str, int | float] | None:
    """Return how a choice is tried before it is trained on, where that is said.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    if pilot is None:
        return None
    if not isinstance(pilot, Mapping):
        raise ValueError(f"is {spell(pilot)}; give some of {', '.join(PILOT)}, such as {{steps: 8}}, or null for none")
    found = {**PILOT, **pilot}
    for key, value in found.items():
        if key not in PILOT:
            raise ValueError(f"has an unknown {key!r}{hint(key, PILOT)}; known: {', '.join(PILOT)}")
        if key == "rows":
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value <= 1:
                raise ValueError(f"has rows: {spell(value)}; it is a share of the choice, above 0 and at most 1")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"has {key}: {spell(value)}; it must be a whole number, at least 1")
    return found


@checked
class SelectionSettings:
    """How rows are chosen."""

    selector: Literal[tuple(SELECTORS)] = Field("delift", description="what rows are chosen by")
    objective: Literal["conditional_gain", "facility_location", "mutual_information"] = Field(
        "conditional_gain",
        description="of delift and embedding (DELIFT, section 3.2); conditional gain is facility location where "
        "nothing was learnt before",
    )
    mutual_information: Literal["saturated", "additive", "queries"] = Field(
        "queries", description="the form of mutual information: submodlib's FLVMI | the paper's | submodlib's FLQMI"
    )
    target_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="of the target task in it: eta")
    learnt_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="of what was learnt before in conditional gain: nu"
    )
    scaling: Literal["relu", "minmax", "none"] = Field(
        "relu", description="of utilities: DELIFT's paper | its code | for kernels that are >= 0 already"
    )
    quality: Literal["none", "help", "neighbours"] = Field(
        "none",
        description="of delift and embedding, by which each demo's similarities are multiplied: 1 | its mean utility "
        "for all rows that it was scored with | for and from its nearest rows alone (utility.kernel: neighbours)",
    )
    quality_prior: Annotated[float, Field(ge=0)] = Field(
        0.0, description="pairs that the median of all demos counts for in each one's quality; 0: its mean as it is"
    )
    budget: RowBudget = Field(
        default_factory=lambda: {"fraction": 0.3},
        description="one of count: rows | fraction: of the used pool | response_tokens: tokens",
    )
    gate: Annotated[Mapping[str, str | float | None] | None, BeforeValidator(refuse_gate)] = Field(
        None,
        description="{by: ifd | help | agreement, drop: 0.2}: before all else so many of the used pool leave, those of "
        "the highest IFD | of the lowest mean utility as demo | whose prompt and response are least alike, for their "
        "topic; with beyond: 2 only those of them (drop: 0.5 at most) that are worse than usual by so many standard "
        "deviations; null: none",
    )
    pilot: Annotated[Mapping[str, int | float] | None, BeforeValidator(refuse_pilot)] = Field(
        None,
        description="{steps: 8, seeds: 3, rows: 0.1}: train briefly on a share of the choice, of random rows and of a "
        "mixture, as finetuning would, and take what serves validation rows; null: the choice as it is",
    )
    caps: Mapping[str, Rows] = Field(
        default_factory=dict, description='topic -> at most so many rows; "*": every topic not named'
    )
    floors: Mapping[str, Rows] = Field(default_factory=dict, description="topic -> at least so many rows")
    stratify: Literal["none", "topic"] = Field(
        "none",
        description="of selectors with an objective, without a target task and by a budget of rows: topics as they "
        "come | each has at most its share of the distinct rows, rounded up",
    )
    optimiser: Literal["lazy", "stochastic", "partition"] = Field("lazy", description="of the objective")
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="stochastic: a pick looks at n/k * log(1/epsilon) of n rows (arXiv 1409.7938)"
    )
    partitions: Annotated[int, Field(ge=1)] = Field(
        4, description="partition: parts of the ground set, chosen from apart, then together"
    )
    seed: Seed = Field(
        0,
        description="of what is drawn: selectors random, balanced, fresh and deft_ucs, optimisers stochastic and "
        "partition",
    )
