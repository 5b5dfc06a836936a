"""Made-up cells of a study, for tests of its report."""

import numpy as np

EFFECTS = {"default": -0.3, "random": 0.0, "embedding": 0.2, "equal": 0.0}
ROWS = 60


def make_cell(pool="noisy-across-20", selector="default", budget="0.3", mask="none", seed=0, **other) -> dict:
    """Return a cell whose losses are those of its pool and seed, the selector's effect and a little noise."""
    shared, own = np.random.default_rng([seed, len(pool)]), np.random.default_rng([seed, len(pool), len(selector)])
    losses = shared.normal(2.5, 0.6, ROWS) + EFFECTS[selector] + own.normal(0, 0.05, ROWS)
    cell = {"pool": pool, "selector": selector, "budget": budget, "mask": mask, "seed": seed, "role": "design"}
    cell |= {"pool_digest": f"rows {pool} {seed}", "asked": f"{selector} {budget} {mask} {seed}", "rule": selector}
    cell |= {"model": "m", "commit": "c" * 40, "code": "d", "machine": "here", "steps": 12, "epochs": 2}
    cell |= {"pool_rows": 160, "chosen_rows": 48, "corrupted": 2 if selector == "default" else 10, "pool_corrupted": 32}
    cell |= {"repeats": 0, "pool_repeats": 0, "of_target": None, "pool_target": None, "coverage": 0.75}
    cell |= {
        "chosen": [f"{selector} {place * (seed + 1)}" for place in range(48)],
        "ids": [f"h{n}" for n in range(ROWS)],
    }
    cell |= {"losses": losses.tolist(), "base_losses": (losses + 1).tolist(), "correct": [], "base_correct": []}
    cell |= {"scoring_seconds": 70.0, "selecting_seconds": 0.0, "training_seconds": 30.0, "resumed": 0}
    return cell | {"scoring_flops": None, "training_flops": None, "full_flops": None, "pilot": None} | other


def make_cells(pool="noisy-across-20", seeds=5, **other) -> list[dict]:
    """Return the cells of a pool, of all selectors."""
    return [make_cell(pool, selector, seed=seed, **other) for selector in EFFECTS for seed in range(seeds)]
