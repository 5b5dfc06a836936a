"""What a study would cost, per pool and in all: `tamis study NAME --estimate`."""

from collections.abc import Mapping
from typing import Any

from flows.estimate import RATES, tell_time
from flows.stage import say
from flows.stage_calls import encoder, language
from flows.study.plan import BEFORE, NOW, Study, compose, compose_before, list_cells
from flows.study.run import find_rows

HEADINGS = ["pool", "rows", "seeds", "scored", "trainings", "tokens", "hours"]


def estimate_study(study: Study) -> dict[str, Any]:
    """Return what a first and a further seed of every pool cost; where no rate is known, models are measured.

    Raises:
        StudyError: a pool cannot be built.
    """
    from tasks.estimate import rates
    from tasks.study.cost import Asked, add, estimate_pool

    known, found = rates.read_rates(RATES), {}
    for number, pool in enumerate(study.pools, 1):
        say(f"estimating {pool}, pool {number} of {len(study.pools)}")
        folder, cells = find_rows(study, pool, 0), [cell for cell in list_cells(study) if cell.pool == pool]
        steps = study.pools[pool].steps or study.plan.steps
        asked = [Asked(compose(study, cell, folder), steps) for cell in cells if cell.seed == 0]
        models = rates.Models(language(asked[0].values), encoder(asked[0].values))
        same = study.pools[pool].raw is not None
        found[pool], known = estimate_pool(folder / NOW, asked, models, known, same_rows=same)
        if study.pools[pool].continues:
            earlier = [Asked(compose_before(study, cells[0], folder), steps)]
            before, known = estimate_pool(folder / BEFORE, earlier, models, known, same_rows=same)
            found[pool] = add(found[pool], before)
    rates.write_rates(known, RATES)
    return found


def count_seeds(study: Study) -> dict[str, int]:
    """Return how many seeds each pool has."""
    return {name: pool.seeds or study.plan.seeds for name, pool in study.pools.items()}


def make_table(study: Study, costs: Mapping[str, Any]) -> list[list[Any]]:
    """Return a row per pool, over all seeds, and the total."""
    from tasks.study.cost import total

    seeds = count_seeds(study)
    each = [(pool, cost.first.rows, seeds[pool], total({pool: cost}, seeds)) for pool, cost in costs.items()]
    whole = total(costs, seeds)
    lines = [*each, ("total", whole.rows, max(seeds.values()), whole)]
    return [
        [name, rows, many, cost.scored, cost.trainings, cost.tokens, round(cost.seconds / 3600, 2)]
        for name, rows, many, cost in lines
    ]


def expect_blocks(study: Study) -> dict[str, float]:
    """Return the seconds that every block is expected to take; nothing, with a line why, where that is not known."""
    try:
        costs = estimate_study(study)
    except ValueError as error:
        say(f"no estimate of this study: {error}")
        return {}
    found = {}
    for pool, many in count_seeds(study).items():
        found |= {f"{pool} seed {s}": (costs[pool].again if s else costs[pool].first).seconds for s in range(many)}
    say(f"the whole study is expected to take {tell_time(sum(found.values()))}, less what is done")
    return found
