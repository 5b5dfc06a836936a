"""A study as its file says it: pools x selectors x budgets x masks x seeds, and the parameters of each cell.

Every cell's parameters are those of params.yaml, with what the study, the pool and the selector say of some of them
instead, checked like params.yaml itself before anything runs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from flows import params
from flows.checks import ParamsError
from flows.compare import BLIND
from flows.params import Params, check_section
from flows.study.files import NAME, STUDIES, StudyError, load_study
from tasks.selection.selectors import CHANCE, list_read, may_stratify
from tasks.settings import checked, hint, spell

NOW, BEFORE = "now", "before"  # folders of a pool's rows, and the names of their data versions
# Sections that no figure of a cell depends on.
UNDECIDED = ("versions", "runtime", "audit", "acceptance", "landing", "mirror")
GENERATED = ("bootstrap", "confidence", "demos", "generated_rows", "seed")  # likewise, of section evaluation
GRID = {"selection": {"budget", "caps", "floors", "seed"}, "mask": {"selector"}, "finetuning": {"arms"}}
SEEDS = 1000  # of a study at most: beyond it, listing the cells alone would take long

T = TypeVar("T")
Layer = Mapping[str, Mapping[str, Any]]  # section of params.yaml -> its settings
TOKENS = re.compile(r"[1-9][0-9]* tokens")  # a budget of response tokens


def refuse_budgets(budgets: Any) -> list[float | int | str]:
    """Return the budgets of a study or of a pool, where they are budgets.

    Raises:
        ValueError: saying which is none, after the setting's name.
    """
    for budget in budgets if isinstance(budgets, list) else [budgets]:
        if isinstance(budget, str):
            known = TOKENS.fullmatch(budget)
        else:
            known = type(budget) in (int, float) and (0 < budget <= 1 or (budget >= 1 and type(budget) is int))
        if not known or not isinstance(budgets, list):
            raise ValueError(
                f"is {spell(budgets)}; give a list of fractions above 0 and at most 1, whole numbers of rows from 1 "
                "on, or texts such as 600 tokens"
            )
    twice = [budget for place, budget in enumerate(budgets) if str(budget) in map(str, budgets[:place])]
    if twice:
        raise ValueError(f"is {budgets!r}, and names {twice[0]} twice; name each budget once")
    return budgets


Budgets = Annotated[Any, AfterValidator(refuse_budgets)]
OwnBudgets = Annotated[Any, AfterValidator(lambda budgets: None if budgets is None else refuse_budgets(budgets))]


@checked
class PoolPlan:
    """What is said of a pool."""

    role: Literal["design", "confirm"] = Field(
        "design", description="whether settings were chosen by it | it was scored once, after they were"
    )
    raw: str | None = Field(
        None, description="folder with its rows, the same for every seed; null: the builder makes one per seed"
    )
    continues: bool = Field(False, description="it is a version that continues from the rows in its folder `before`")
    budgets: OwnBudgets = Field(None, description="instead of the study's")
    seeds: Annotated[int, Field(ge=1, le=SEEDS)] | None = Field(None, description="likewise")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="likewise")
    params: Layer = Field(default_factory=dict, description="sections of params.yaml, and of each some settings")


@checked
class StudyPlan:
    """What is said of a study."""

    pools: Mapping[str, Mapping[str, Any]] = Field(description="pool -> what is said of it; cheap ones first")
    selectors: Mapping[str, Layer] = Field(
        description="name -> what of params.yaml is other; one with a budget keeps it"
    )
    chance: list[str] = Field(description="the selectors that choose by chance, which the others are held against")
    budgets: Budgets = Field(description="fractions of the pool, counts of rows, or `600 tokens` of responses")
    masks: list[str] = Field(default_factory=lambda: ["none"], description="words of mask.selector")
    seeds: Annotated[int, Field(ge=1, le=SEEDS)] = Field(description="each draws rows and training anew")
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimiser steps of every training, to whole epochs; null: finetuning.epochs decides"
    )
    builder: str | None = Field(None, description="Python file that builds pools: --data --out --seed NAME...")
    data: str = Field("../shared/data", description="folder that the builder reads")
    params: Layer = Field(default_factory=dict, description="sections of params.yaml, and of each some settings")
    beside: list[str] = Field(default_factory=list, description="other studies whose cells its report shows, too")


@dataclass(frozen=True)
class Study:
    """A study, checked."""

    name: str
    plan: StudyPlan
    pools: Mapping[str, PoolPlan]


@dataclass(frozen=True)
class Cell:
    """What is trained once."""

    pool: str
    selector: str
    budget: str  # as it was written; "" where the selector has its own
    mask: str
    seed: int

    def __str__(self) -> str:
        """Return its name for people.

        >>> str(Cell("clean-tldr", "default", "0.1", "none", 0))
        'clean-tldr: default at 0.1, seed 0'
        """
        within = "" if self.mask == "none" else f" in {self.mask} mask"
        return f"{self.pool}: {self.selector}{within}{self.budget and f' at {self.budget}'}, seed {self.seed}"


def read_study(name: str) -> Study:
    """Read and check a study of `studies/`.

    Raises:
        StudyError: there is no such study, or what it says of itself does not fit together.
        ParamsError: a value that cannot be, by name.
    """
    path = STUDIES / f"{name}.yaml"
    plan = check_section(StudyPlan, load_study(name), str(path))
    pools = {key: check_section(PoolPlan, said or {}, f"{path}: pools.{key}") for key, said in plan.pools.items()}
    study = Study(name, plan, pools)
    refuse_contradictions(study)
    for cell in {(c.pool, c.selector, c.budget, c.mask): c for c in list_cells(study)}.values():
        compose(study, cell, Path("."))
    refuse_false_chance(study)
    return study


def refuse_contradictions(study: Study) -> None:
    """Raise StudyError where the parts of a study do not fit together."""
    plan, place = study.plan, STUDIES / f"{study.name}.yaml"
    for what, names in (("pool", plan.pools), ("selector", plan.selectors)):
        odd = [name for name in names if not NAME.fullmatch(name)]
        if odd:
            raise StudyError(
                f"{place} has a {what} {odd[0]!r}; results are filed under it, so give letters, digits, dots, dashes "
                "and underlines, the first a letter or a digit"
            )
    for what in ("pools", "selectors", "budgets", "masks"):
        if not getattr(plan, what):
            raise StudyError(f"{place} names no {what}; give at least one")
    refuse_fixed(study)
    for name in plan.chance:
        if name not in plan.selectors:
            raise StudyError(f"{place} has chance: {name}{hint(name, plan.selectors)}, which is none of its selectors")
    if not plan.chance:
        raise StudyError(f"{place} names no chance, which every selector is held against; give one of its selectors")
    for name in plan.beside:
        if not (STUDIES / f"{name}.yaml").exists():
            raise StudyError(
                f"{place} has beside: {name}, and there is no {STUDIES / name}.yaml; name a study, or none"
            )
    homeless = [name for name, pool in study.pools.items() if pool.raw is None]
    if homeless and plan.builder is None:
        raise StudyError(
            f"{len(homeless)} of {len(study.pools)} pools of {place} have no raw folder and there is no builder, first "
            f"{homeless[:3]}; give raw: FOLDER or builder: FILE"
        )


def refuse_false_chance(study: Study) -> None:
    """Raise StudyError where what is called chance looks at the rows."""
    for name in study.plan.chance:
        by = study.plan.selectors[name].get("selection", {}).get("selector")
        if by not in CHANCE:
            chosen = by or "the selector of params.yaml"
            raise StudyError(
                f"{STUDIES / study.name}.yaml has chance: {name}, which chooses by {chosen}; give it a "
                f"selection.selector of {', '.join(CHANCE)}"
            )


def refuse_fixed(study: Study) -> None:
    """Raise StudyError where the study, or a pool, sets what the grid decides."""
    layers = {"params": study.plan.params} | {f"pools.{name}.params": pool.params for name, pool in study.pools.items()}
    for where, layer in layers.items():
        for section, names in GRID.items():
            for name in names & layer.get(section, {}).keys():
                raise StudyError(
                    f"{STUDIES / study.name}.yaml: {where} sets {section}.{name}, which the study's budgets, masks and "
                    "seeds decide; leave it out, or set it for a selector"
                )


def choose_pools(study: Study, *, confirm: bool, only: Sequence[str] = ()) -> Study:
    """Return a study without the confirmation pools, or with these alone.

    Args:
        study: of studies/.
        confirm: whether the confirmation pools are meant.
        only: names of pools; all of the role, where none is given.

    Raises:
        StudyError: it has no such pool.
    """
    role = "confirm" if confirm else "design"
    pools = _keep({name: pool for name, pool in study.pools.items() if pool.role == role}, only, f"{role} pool")
    if not pools:
        raise StudyError(f"0 of {len(study.pools)} pools of {STUDIES / study.name}.yaml are of role {role}")
    return replace(study, pools=pools)


def choose_selectors(study: Study, only: Sequence[str]) -> Study:
    """Return a study with some of its selectors; what is chance stays known.

    Args:
        study: of studies/.
        only: names of selectors; all, where none is given.

    Raises:
        StudyError: it has no such selector.
    """
    return replace(study, plan=replace(study.plan, selectors=_keep(study.plan.selectors, only, "selector")))


def _keep(known: Mapping[str, T], only: Sequence[str], what: str) -> dict[str, T]:
    """Return those of some names, all where none is given."""
    for name in only:
        if name not in known:
            raise StudyError(f"there is no {what} {name!r}{hint(name, known)}; known: {', '.join(known)}")
    return {name: one for name, one in known.items() if name in only or not only}


def list_cells(study: Study) -> list[Cell]:
    """Return all cells: seeds outermost, so that wherever it stops all pools have as many; pools in their order."""
    seeds = max(pool.seeds or study.plan.seeds for pool in study.pools.values())
    return [cell for seed in range(seeds) for name in study.pools for cell in _list_block(study, name, seed)]


def _list_block(study: Study, name: str, seed: int) -> Iterator[Cell]:
    plan, pool = study.plan, study.pools[name]
    if seed >= (pool.seeds or plan.seeds):
        return
    for place, budget in enumerate(pool.budgets or plan.budgets):
        for selector, said in plan.selectors.items():
            own = "budget" in said.get("selection", {})
            if own and place:
                continue
            for mask in plan.masks:
                yield Cell(name, selector, "" if own else str(budget), mask, seed)


def compose(study: Study, cell: Cell, folder: Path) -> Params:
    """Return the parameters of a cell.

    Args:
        study: that it is of.
        cell: of the study.
        folder: of its pool's rows.

    Raises:
        ParamsError: they cannot be used.
    """
    masked = any(mask != "none" for mask in study.plan.masks)
    drawn = {"selection": {"seed": cell.seed, "caps": {}, "floors": {}}}
    if cell.budget:
        drawn["selection"]["budget"] = read_budget(cell.budget)
    cut = {"mask": {"selector": cell.mask}, "finetuning": {"arms": {"chosen": [cell.seed]}}}
    if masked:
        cut["finetuning"]["method"] = "full" if cell.mask == "none" else "masked"
    by = study.plan.selectors[cell.selector].get("selection", {}).get("selector")
    if cell.selector in study.plan.chance or by in CHANCE:
        cut["selection"] = BLIND
    layers = [study.plan.params, study.pools[cell.pool].params, drawn, cut, study.plan.selectors[cell.selector]]
    return lay(layers, folder, study, cell.pool)


def compose_before(study: Study, cell: Cell, folder: Path) -> Params:
    """Return the parameters of the version that a pool continues from: its rows are drawn, for all selectors alike."""
    drawn = {
        "selector": "random",
        "objective": "facility_location",
        "seed": cell.seed,
        "caps": {},
        "floors": {},
        **BLIND,
    }
    arms = {"finetuning": {"arms": {"chosen": [cell.seed]}}, "mask": {"selector": "none"}}
    layers = [study.plan.params, study.pools[cell.pool].params, {"selection": drawn}, arms]
    return lay(layers, folder, study, cell.pool)


def lay(layers: Sequence[Layer], folder: Path, study: Study, pool: str) -> Params:
    """Return params.yaml with layers of other settings over it, the last on top, on the rows of a folder."""
    raw, place = params.load(Path("params.yaml")), f"studies/{study.name}.yaml"
    for layer in layers:
        for section, said in layer.items():
            if section not in params.SECTIONS:
                known = ", ".join(params.SECTIONS)
                raise ParamsError(
                    f"{place} has an unknown section {section!r}{hint(section, params.SECTIONS)}; known: {known}"
                )
            raw[section] = {**raw.get(section, {}), **said}
    raw["versions"] = {NOW: {"raw": str(folder / NOW), "previous": "base"}}
    if study.pools[pool].continues:
        raw["versions"][NOW]["previous"] = BEFORE
        raw["versions"][BEFORE] = {"raw": str(folder / BEFORE), "previous": "base"}
    raw.get("examples", {}).pop("sources", None)
    try:
        return params.compose(raw, place)
    except ParamsError as error:
        raise ParamsError(f"{place}, pool {pool}: {error}") from None


def read_budget(text: str) -> dict[str, int | float]:
    """Return a budget as params.yaml writes it.

    >>> read_budget("0.1"), read_budget("48"), read_budget("600 tokens")
    ({'fraction': 0.1}, {'count': 48}, {'response_tokens': 600})
    """
    number, _, unit = text.partition(" ")
    if unit:
        return {"response_tokens": int(number)}
    return {"count": int(text)} if text.isdigit() else {"fraction": float(text)}


def list_settings(values: Params) -> dict[str, Any]:
    """Return the settings that a cell's figures depend on, where they are not what their class has as the default.

    So a setting or section that is new since, and at its default, makes no cell another one; nor does how pairs are
    scored where none is read.
    """
    found, unread = {}, {("evaluation", name) for name in GENERATED} | _list_unread(values)
    for section in (name for name in params.SECTIONS if name not in UNDECIDED):
        settings, own = getattr(values, section), {}
        for one in fields(settings):
            if getattr(settings, one.name) != _find_default(one) and (section, one.name) not in unread:
                own[one.name] = asdict(settings)[one.name]
        if own:
            found[section] = own
    return found


def _list_unread(values: Params) -> set[tuple[str, str]]:
    """Return settings that what a cell is chosen by does not read: of pairs, of the quality of demos, of strata."""
    chosen, unread = values.selection, set()
    targeted = values.examples.target is not None
    if not may_stratify(chosen.selector, chosen.objective, chosen.budget, targeted=targeted):
        unread.add(("selection", "stratify"))
    pairs = "utility" in list_read(chosen.selector, chosen.gate, chosen.quality)
    if not pairs or chosen.quality == "none":
        unread.add(("selection", "quality_prior"))
    if not pairs:
        unread |= {("selection", "quality"), *(("utility", one.name) for one in fields(values.utility))}
    return unread


def _find_default(one: Any) -> Any:
    """Return the default of a setting; MISSING where it has none."""
    known = getattr(one.default, "default", one.default)
    make = getattr(one.default, "default_factory", None)
    if make is None and one.default_factory is not MISSING:
        make = one.default_factory
    return make() if make is not None else known
