"""A study, run: every cell that is not in its results yet, as far as the time given reaches.

for each seed, and in it each pool, one Prefect task:
    build the pool's rows; score, choose, train and measure each cell (flows.trials), and add it to docs/results/study
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.compare import measure
from flows.drive import alone
from flows.environment import name_machine
from flows.estimate import Clock, end_stage, tell_left
from flows.params import Params
from flows.stage import named, say, sources
from flows.stage_calls import CACHE, SCORING, STAGES, language
from flows.study.plan import BEFORE, NOW, Cell, Study, StudyError, compose, compose_before, list_cells, list_settings
from flows.trials import Trial, attempt, digest, read_choice

RESULTS = Path("docs/results/study")
POOLS = CACHE / "study"
CODE = (*SCORING, "examples", "selection", "finetuning", "evaluation")  # stages whose code a cell's figures are of


@dataclass(frozen=True)
class Sitting:
    """What holds for all cells of a sitting."""

    study: Study
    loaded: Mapping[str, str]  # digests of the stages' modules
    commit: str
    model: str  # digest of the language model
    until: float | None  # when no further cell is begun, of time.monotonic
    again: bool  # cells that other code made are made again


@dataclass(frozen=True)
class Progress:
    """How far a study is."""

    cells: int
    done: int
    made: int  # of these, in this sitting


def run(study: Study, *, minutes: float | None = None, again: bool = False, seconds: Mapping[str, float]) -> Progress:
    """Run the cells that a study's results lack.

    Args:
        study: of studies/.
        minutes: after which no further cell is begun; None: all are.
        again: make those again that other code made.
        seconds: that a block (`clean-tldr seed 0`) is expected to take; may be empty.

    Raises:
        StudyError: a pool cannot be built; confirmation pools are asked for while files are edited, or once more.
    """
    refuse_missing(study)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    loaded = sources(f"{name}@{NOW}" for name in STAGES)  # no stage's module is imported yet
    commit = find_commit()
    if any(pool.role == "confirm" for pool in study.pools.values()):
        if commit.endswith("+"):
            raise StudyError(
                "confirmation pools are scored once, by a default that is committed; commit what was edited"
            )
        if again:
            raise StudyError("confirmation pools are scored once; leave out --again")
    sitting = Sitting(study, loaded, commit, find_model(study), until, again)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), alone():
        return sit.with_options(name=f"tamis-study-{study.name}")(sitting, seconds)


@flow(name="tamis-study", validate_parameters=False)
def sit(sitting: Sitting, seconds: Mapping[str, float]) -> Progress:
    """Run one block, a pool with a seed, after the other."""
    cells, blocks = list_cells(sitting.study), {}
    for cell in cells:
        blocks.setdefault((cell.seed, cell.pool), []).append(cell)
    clock, done, made = Clock(dict(seconds)), 0, 0
    for (seed, pool), own in blocks.items():
        name, start = f"{pool} seed {seed}", time.monotonic()
        found = block.with_options(name=name, task_run_name=name)(sitting, own, done)
        done, made = done + found.done, made + found.made
        clock = end_stage(clock, name, time.monotonic() - start, computed=found.made == len(own))
        if found.made:
            say(f"{name:<28} {done} of {len(cells)} cells are done{tell_left(clock)}")
        if found.done < len(own):
            say(f"the time is up: {done} of {len(cells)} cells are done; run again to go on")
            break
    return Progress(len(cells), done, made)


@task(cache_policy=NO_CACHE, persist_result=False)
def block(sitting: Sitting, cells: Sequence[Cell], before: int) -> Progress:
    """Run the cells of one pool with one seed; those that are there already are left as they are."""
    from tasks.study import results

    study, pool, seed = sitting.study, cells[0].pool, cells[0].seed
    folder = find_rows(study, pool, seed)
    path = results.find_file(RESULTS / study.name, pool)
    known, made, old = results.index_cells(results.read_all(RESULTS)), 0, []
    stored = results.read_cells(path)
    there = {tuple(row[name] for name in results.MADE_FROM) for row in stored}
    examples: dict[str, tuple[Trial, dict[str, Trial]]] = {}
    for number, cell in enumerate(cells):
        values = compose(study, cell, folder)
        facts = name_cell(sitting, cell, values, folder)
        if study.pools[pool].role == "confirm":
            refuse_second(facts, [row for row in known.values() if row["pool"] == cell.pool])
        key = tuple(facts[name] for name in results.MADE_FROM)
        found = known.get(key)
        if found is not None and (found["code"] == facts["code"] or not sitting.again):
            old += [found["commit"]] if found["code"] != facts["code"] else []
            if key not in there:
                results.add_cell(path, {**found, **facts, "commit": found["commit"], "code": found["code"]})
            continue
        if sitting.until is not None and time.monotonic() >= sitting.until:
            return Progress(len(cells), number, made)
        say(f"{cell} (cell {before + number + 1})")
        with named(str(cell)):
            results.add_cell(path, facts | run_cell(sitting, cell, values, folder, examples))
        made += 1
    if old:
        many = f"{len(old)} of {len(cells)} cells are of other code, first of {old[0][:8]}"
        say(f"{pool} seed {seed}: {many}; --again makes them anew")
    return Progress(len(cells), len(cells), made)


def refuse_second(facts: Mapping[str, Any], scored: Sequence[Mapping[str, Any]]) -> None:
    """Raise StudyError where a confirmation pool was scored, in any study, by such a selector with other settings."""
    named = ("selector", "budget", "mask")
    for row in scored:
        if all(row[name] == facts[name] for name in named) and row["rule"] != facts["rule"]:
            raise StudyError(
                f"{facts['pool']} was scored by another {facts['selector']!r}, of commit {row['commit'][:8]}, and a "
                "confirmation pool is scored once; put those settings back, or give it another name and role: design"
            )


def name_cell(sitting: Sitting, cell: Cell, values: Params, folder: Path) -> dict[str, Any]:
    """Return what a cell is, what it is made from, and by which code."""
    code = {path: sitting.loaded[path] for path in sources(f"{name}@{NOW}" for name in CODE)}
    return {
        **vars(cell),
        "role": sitting.study.pools[cell.pool].role,
        "pool_digest": digest_rows(folder),
        **digest_settings(sitting.study, cell, values),
        "model": sitting.model,
        "commit": sitting.commit,
        "code": digest(code),
        "machine": name_machine(),
    }


def digest_settings(study: Study, cell: Cell, values: Params) -> dict[str, str]:
    """Return the digests of all that is asked of a cell, and of the same but for seeds."""
    pool = study.pools[cell.pool]
    asked = {"settings": list_settings(values), "steps": pool.steps or study.plan.steps, "continues": pool.continues}
    return {"asked": digest(asked), "rule": digest(asked | {"settings": list_settings(unseed(values))})}


def unseed(values: Params) -> Params:
    """Return parameters without what differs from seed to seed."""
    arms = replace(values.finetuning, arms={"chosen": [0]})
    return replace(values, selection=replace(values.selection, seed=0), finetuning=arms)


def run_cell(
    sitting: Sitting, cell: Cell, values: Params, folder: Path, examples: dict[str, tuple[Trial, dict[str, Trial]]]
) -> dict[str, Any]:
    """Score, choose, train and measure; return what came of it.

    Args:
        sitting: that it is of.
        cell: that is run.
        values: its parameters.
        folder: of its pool's rows.
        examples: by the key of their settings, those of earlier cells with what they continue from.
    """
    from tasks.study import results

    loaded = sitting.loaded
    before = run_before(sitting, cell, folder) if sitting.study.pools[cell.pool].continues else {}
    kept: dict[str, Any] = {"before": before}
    done = {"examples": attempt("examples", NOW, values, {}, loaded, **kept)}
    whole = replace(values, selection=replace(values.selection, selector="embedding"))
    vectors = attempt("embedding", NOW, whole, done, loaded, **kept)
    for name in (*SCORING, "selection"):
        done[name] = attempt(name, NOW, values, done, loaded, **kept)
    values, steps = spread_steps(sitting, cell, values, done["selection"])
    done["finetuning"] = attempt("finetuning", NOW, values, done, loaded, **kept)
    trained, base = measure(values, NOW, done, loaded)
    pilot = read_choice(done["selection"])["pilot"]
    return {
        **results.describe_choice(done["examples"].folder, vectors.folder, done["selection"].folder),
        "steps": steps,
        "epochs": values.finetuning.epochs,
        "ids": trained["ids"],
        "losses": trained["losses"],
        "base_losses": base["losses"],
        "correct": trained["correct"],
        "base_correct": base["correct"],
        "scoring_seconds": sum(done[name].notes.get("scoring_seconds", 0.0) for name in SCORING),
        "scoring_flops": sum(done[name].notes.get("scoring_flops", 0) for name in SCORING),
        "training_flops": sum(run["flops"] for run in done["finetuning"].notes["training"].values()),
        "selecting_seconds": done["selection"].seconds,
        "training_seconds": done["finetuning"].seconds,
        "full_flops": done["finetuning"].notes["full_flops"],
        "resumed": sum(done[name].resumed for name in (*SCORING, "finetuning")),
        "pilot": None if pilot is None else json.dumps(pilot),
    }


def run_before(sitting: Sitting, cell: Cell, folder: Path) -> dict[str, Trial]:
    """Choose rows of the version before by chance and train on them, once for all selectors of a pool and seed."""
    values, done = compose_before(sitting.study, cell, folder), {}
    for name in ("examples", *SCORING, "selection"):
        done[name] = attempt(name, BEFORE, values, done, sitting.loaded)
    values, _ = spread_steps(sitting, cell, values, done["selection"])
    done["finetuning"] = attempt("finetuning", BEFORE, values, done, sitting.loaded)
    return done


def spread_steps(sitting: Sitting, cell: Cell, values: Params, selection: Trial) -> tuple[Params, int]:
    """Return parameters with as many whole epochs as come nearest to the steps that are asked for, and the steps."""
    asked = sitting.study.pools[cell.pool].steps or sitting.study.plan.steps
    chosen = read_choice(selection)["chosen_rows"]
    each = -(-chosen // values.finetuning.batch_rows)
    epochs = values.finetuning.epochs if asked is None else max(1, round(asked / each))
    return replace(values, finetuning=replace(values.finetuning, epochs=epochs)), epochs * each


def find_rows(study: Study, pool: str, seed: int) -> Path:
    """Return the folder of a pool's rows; where the builder, as it is now, has not made them, all of the seed are.

    Raises:
        StudyError: the builder fails, or makes no such pool.
    """
    own, builder = study.pools[pool].raw, Path(str(study.plan.builder))
    if own is not None:
        return Path(own)
    if not builder.is_file():
        raise StudyError(f"there is no {builder}, which is to build {pool}; name another builder, or give the pool raw")
    home = POOLS / digest_file(builder)[:12]
    folder = home / pool / f"seed={seed}"
    if not folder.exists():
        wanted = {name: each.seeds or study.plan.seeds for name, each in study.pools.items() if each.raw is None}
        asked = [str(builder), "--data", study.plan.data, "--out", str(home), "--seed", str(seed)]
        asked += [name for name, seeds in wanted.items() if seed < seeds]
        done = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=False)
        if done.returncode or not folder.exists():
            last = (done.stderr.strip().splitlines() or ["it made no such pool"])[-1]
            lost = "" if Path(study.plan.data).is_dir() else f"; data: {study.plan.data} of the study is no folder"
            raise StudyError(f"{builder} could not build {pool} with seed {seed}: {last}{lost}")
    return folder


def refuse_missing(study: Study) -> None:
    """Raise StudyError where a pool's own rows are not there, before any cell."""
    place = f"studies/{study.name}.yaml"
    for name, pool in study.pools.items():
        for part in (NOW, BEFORE) if pool.continues else (NOW,):
            if pool.raw is not None and not (Path(pool.raw) / part).is_dir():
                raise StudyError(
                    f"pools.{name}.raw of {place} is {pool.raw}, and there is no folder {Path(pool.raw) / part}, which "
                    "is to hold its rows; name a folder that has one"
                )


def digest_rows(folder: Path) -> str:
    """Return a digest of a pool's raw files, whatever folder they lie in."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return digest({str(path.relative_to(folder)): digest_file(path) for path in files})


def digest_file(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_commit() -> str:
    """Return the project's commit, with a + where tracked files were edited since; `unknown` without git."""
    asked = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    done = [subprocess.run(each, capture_output=True, text=True, check=False) for each in asked]
    if any(each.returncode for each in done):
        return "unknown"
    edited = [line for line in done[1].stdout.splitlines() if str(RESULTS) not in line]
    return done[0].stdout.strip() + ("+" if edited else "")


def find_model(study: Study) -> str:
    """Return the digest of the language model of a study."""
    from tasks.models import model_digest

    return model_digest(language(compose(study, list_cells(study)[0], Path("."))))
