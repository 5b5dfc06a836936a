"""Picks of the main selectors on a noisy pool of real rows, without any training; the last line is one JSON object.

    python benchmarks/noise.py --data FILE [--rows 120] [--draws 5] [--targets 16] [--seed 0]

FILE is JSONL with prompt, response and topic, such as a version of tldr; other versions beside it give near-duplicates.
The pool: 40% distinct rows, 20% near-duplicates of some of them (from neighbouring versions or pages), 20% boilerplate
(how any command shows its help or version) and 20% distinct rows whose responses are exchanged, across commands and,
once more, within them. Each draw exchanges other rows, two by two, so that a row has one wrong response and most pairs
are shared. `default` is what params.yaml chooses by; the others differ from it in what their name says. Of the picks
at 30%: `corrupted`, the share that is exchanged; `repeated`, the share that says what another pick says. `cover`: over
clean rows that are not chosen (`--targets` of them are scored with every row of the pool), the best help U_ij from a
chosen row as a share of the best that any row of the pool gives. All are means over the draws.
"""

import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from runpy import run_path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from flows import params
from flows.params import Params
from flows.stage_calls import STAGES, language
from tamis.utility.pairs import pair_all
from tasks.artifacts.tables import digest, read_table
from tasks.examples.settings import ExamplesSettings
from tasks.folders import Artifacts, Folders
from tasks.utility.asking import ask
from tasks.utility.pool import read_pool
from tasks.utility.utility import Shard, compute_utility, open_store, score_missing

ROOT = Path(__file__).parents[1]
BUDGET, LONGEST = 0.3, 160  # of the pool's rows; characters of a row
APART = run_path(str(ROOT / "studies/pools.py"))["APART"]  # commands of the study's confirmation pool
BOILERPLATE = re.compile(r"\S+ (--help|-h|help|--version|-V)")
SCORING = ("embedding", "utility", "scores", "gradients")
PAIRS = {"kernel": "neighbours", "neighbours": 3, "help_targets": 0}
SELECTORS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {  # name -> section of params.yaml -> what is other in it
    "default": {},
    "random": {"selection": {"selector": "random"}},
    "embedding": {"selection": {"selector": "embedding", "quality": "none"}},
    "capped": {"selection": {"selector": "delift", "quality": "none"}, "utility": {**PAIRS, "diagonal": "capped"}},
    "scored": {"selection": {"selector": "delift", "quality": "none"}, "utility": {**PAIRS, "diagonal": "scored"}},
    "capped x help": {
        "selection": {"selector": "delift", "quality": "help"},
        "utility": {**PAIRS, "diagonal": "capped", "help_targets": 4},
    },
    "cosine x help": {"selection": {"selector": "embedding", "quality": "help"}},
}

Text = tuple[str, str]  # prompt and response


@dataclass(frozen=True)
class Row:
    """A row of the pool."""

    text: Text
    topic: str
    group: str  # rows of a group say the same
    corrupted: bool = False


@dataclass(frozen=True)
class Base:
    """What all draws share."""

    fixed: list[Row]  # distinct rows with a near-duplicate, these, and boilerplate
    across: list[tuple[Row, Row]]  # rows that exchange their responses, of two commands
    within: list[tuple[Row, Row]]  # the same rows, likewise, of one command


@dataclass(frozen=True)
class Helped:
    """How much every row of any draw helps some rows."""

    utility: np.ndarray  # [target, row]
    targets: list[Text]
    places: dict[Text, int]  # of rows


def main(
    *,
    data: Annotated[Path, typer.Option(help="JSONL with prompt, response and topic, may be gzipped")],
    rows: int = 120,
    draws: int = 5,
    targets: int = 16,
    model: str = "",
    embedding: str = "",
    seed: int = 0,
) -> None:
    """Build the pools, choose from them, and print a table and a JSON line."""
    values = prepare(params.read(ROOT / "params.yaml"), model, embedding)
    base = make_base(data, rows, seed)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for how in ("across", "within"):
            pools = [exchange(base, how, seed + number) for number in range(draws)]
            helped = measure_help(Path(folder), pools, values, targets, seed)
            taken = [
                judge(pick_all(Path(folder) / how / str(n), pool, values), pool, helped) for n, pool in enumerate(pools)
            ]
            means = {
                name: {key: mean([one[name][key] for one in taken]) for key in taken[0][name]} for name in taken[0]
            }
            show(how, means)
            found |= name_figures(means, "" if how == "across" else "_within")
    print(json.dumps(found | {"rows": len(pools[0]), "draws": draws, "targets": targets, "seed": seed}))


def prepare(values: Params, model: str, embedding: str) -> Params:
    """Return the parameters with which rows are chosen: those of the project, on all rows of a pool as they are."""
    named = {"language": model or values.models.language, "embedding": embedding or values.models.embedding}
    examples = ExamplesSettings(deduplicate=False, held_out={"path": "held_out.jsonl"}, on_special_tokens="as_text")
    return replace(
        values,
        models=replace(values.models, **named),
        examples=examples,
        utility=replace(values.utility, check_targets=0),
        selection=replace(values.selection, budget={"fraction": BUDGET}, caps={}, floors={}),
        mask=replace(values.mask, selector="none"),
    )


def read(data: Path) -> list[dict[str, str]]:
    """Return the short rows of a file, each prompt once; the topic is the command without that of the subcommand.

    Commands by which a study confirms what was chosen are left out: defaults are chosen by what is printed here.
    """
    from utility import read_lines

    short = (row for row in read_lines(data) if len(row["prompt"]) + len(row["response"]) <= LONGEST)
    rows = ({**row, "topic": row["topic"].partition("-")[0]} for row in short)
    return list({row["prompt"]: row for row in rows if row["topic"] not in APART}.values())


def make_base(data: Path, rows: int, seed: int) -> Base:
    """Return the rows that all draws share: a fifth each of originals, near-duplicates and boilerplate, and the others.

    Raises:
        ValueError: the file has too few rows of a kind.
    """
    draw, part = np.random.default_rng(seed), round(rows / 5)
    known = read(data)
    known = [known[place] for place in draw.permutation(len(known))]
    plates = [make_row(row, "boilerplate") for row in known if BOILERPLATE.fullmatch(row["response"])][:part]
    plain = [row for row in known if not BOILERPLATE.fullmatch(row["response"])]
    commands: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in plain:
        commands[row["topic"]].setdefault(row["response"], make_row(row))
    pairs = [tuple(own.values())[:2] for own in commands.values() if len(own) > 1][: part - part % 2]
    taken = {row.text for pair in pairs for row in pair}
    near = find_near([row for row in plain if (row["prompt"], row["response"]) not in taken], data, part)
    for what, there, wanted in (("boilerplate", plates, part), ("near-duplicates", near, part), ("commands", pairs, 2)):
        if len(there) < wanted:
            raise SystemExit(f"error: {data} gives {len(there)} of {wanted} {what}; lower --rows or give another file")
    fours = list(zip(pairs[::2], pairs[1::2], strict=True))
    across = [both for one, other in fours for both in zip(one, other, strict=True)]
    return Base([*chain.from_iterable(near), *plates], across, pairs)


def make_row(row: Mapping[str, str], group: str = "") -> Row:
    """Return a clean row; it says what no other row says, where no group is given."""
    return Row((row["prompt"], row["response"]), row["topic"], group or row["prompt"])


def find_near(rows: Sequence[dict[str, str]], data: Path, count: int) -> list[tuple[Row, Row]]:
    """Return rows, each with one of almost the same words, of other versions beside the file or of other pages."""
    files = [path for path in sorted(data.parent.glob("*.jsonl*")) if path != data]
    others = [row for path in files for row in read(path)] or list(rows)
    alike: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in others:
        for name in ("prompt", "response"):
            alike[name, row[name]].append(row)
    found: list[tuple[Row, Row]] = []
    for row in rows:
        near = [*alike["prompt", row["prompt"]], *alike["response", row["response"]]]
        edited = [one for one in near if (one["prompt"] == row["prompt"]) != (one["response"] == row["response"])]
        if edited and len(found) < count:
            found.append((make_row(row), make_row(edited[0], row["prompt"])))
    return found


def exchange(base: Base, how: str, seed: int) -> list[Row]:
    """Return a pool in which half of the rows that may are exchanged, two by two."""
    draw, pairs = np.random.default_rng(seed), base.across if how == "across" else base.within
    wrong = set(draw.permutation(len(pairs))[: len(pairs) // 2].tolist())
    rows = list(base.fixed)
    for place, (one, other) in enumerate(pairs):
        rows += [swap(one, other), swap(other, one)] if place in wrong else [one, other]
    return [rows[place] for place in draw.permutation(len(rows))]


def swap(row: Row, other: Row) -> Row:
    """Return a row with the response of another."""
    return replace(row, text=(row.text[0], other.text[1]), corrupted=True)


def read_examples(rows: Sequence[Row], home: Path, values: Params) -> Folders:
    """Write rows as raw data and run the stage `examples` on them; return the folders."""
    raw = home / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": row.text[0], "response": row.text[1], "topic": row.topic}) + "\n" for row in rows]
    (raw / "pool.jsonl").write_text("".join(lines), encoding="utf-8")
    (raw / "held_out.jsonl").write_text('{"prompt": "Who asks?", "response": "Nobody.", "topic": ""}\n')
    before = Artifacts("base", **{name: ROOT / f"data/{name}/version=base" for name in STAGES})
    folders = find_folders(home, "", Folders(before, before, raw, home.parents[1] / "store", home, home / "warmup"))
    STAGES["examples"](values, folders, map)
    return folders


def find_folders(home: Path, name: str, folders: Folders) -> Folders:
    """Return folders in which a selector's artifacts lie apart, beside the examples that all share."""
    here = Artifacts("noise", **{field.name: home / name / field.name for field in fields(Artifacts)[1:]})
    return replace(folders, here=replace(here, examples=home / "examples"))


def pick_all(home: Path, pool: Sequence[Row], values: Params) -> dict[str, list[set[Text]]]:
    """Return what every selector takes, of random rows five choices."""
    folders, found = read_examples(pool, home, values), {}
    for name, other in SELECTORS.items():
        plain = {"selection": {"gate": None, "pilot": None}} if other else {}
        asked = change(change(values, plain), other)
        seeds = range(5) if name == "random" else [asked.selection.seed]
        own = find_folders(home, name, folders)
        for stage in SCORING:
            STAGES[stage](asked, own, map)
        found[name] = []
        for seed in seeds:
            STAGES["selection"](replace(asked, selection=replace(asked.selection, seed=seed)), own, map)
            found[name].append(read_texts(own, "chosen"))
    return found


def change(values: Params, other: Mapping[str, Mapping[str, Any]]) -> Params:
    """Return parameters in which some settings of some sections are others."""
    return replace(values, **{section: replace(getattr(values, section), **own) for section, own in other.items()})


def read_texts(folders: Folders, column: str) -> set[Text]:
    """Return the texts of the rows that are chosen."""
    table = read_table(folders.here.selection / "subset.parquet")
    ids = table.filter(table[column])["id"]
    rows = read_table(folders.here.examples / "examples.parquet", columns=["id", "prompt", "response"])
    rows = rows.filter(pc.is_in(rows["id"], ids.combine_chunks()))
    return set(zip(rows["prompt"].to_pylist(), rows["response"].to_pylist(), strict=True))


def measure_help(home: Path, pools: Sequence[list[Row]], values: Params, count: int, seed: int) -> Helped:
    """Score some rows that are clean in any draw with every row of all draws."""
    rows = list({row.text: row for pool in pools for row in pool}.values())
    clean = sorted({row.text for row in rows if not row.corrupted})
    drawn = [clean[place] for place in np.random.default_rng(seed).permutation(len(clean))[:count]]
    number = len(list(home.glob("help/*")))
    folders = read_examples(rows, home / f"help/{number}", values)
    source, model = folders.here.examples / "examples.parquet", language(values)
    pool = read_pool(source, digest(source), model)
    table = read_table(source, columns=["id", "prompt", "response"])
    texts = zip(table["id"].to_pylist(), table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
    places = {(prompt, response): pool.ids.index(name) for name, prompt, response in texts if name in pool.ids}
    targets = np.array([places[text] for text in drawn])
    asked, _ = ask(pool, {"kernel": pair_all(targets, np.arange(len(pool.ids)))}, model.max_tokens)
    whole = replace(values.utility, answer_tokens=None)  # whatever the choices are made by
    store = open_store(folders.cache / "pairs", model, whole)
    work = Shard(source, digest(source), store, model, whole, values.runtime, np.empty((0, 2), np.int32))
    wanted = asked.filter(pc.is_in(asked["target"], pa.array(targets, asked["target"].type)))
    scores = compute_utility(score_missing(work, wanted, map)[0], values.utility)
    utility = np.full((len(pool.ids), len(pool.ids)), -np.inf)
    utility[np.asarray(scores["target"]), np.asarray(scores["demo"])] = np.asarray(scores["utility"])
    return Helped(utility[targets], drawn, places)


def judge(picks: Mapping[str, Sequence[set[Text]]], pool: Sequence[Row], helped: Helped) -> dict[str, dict[str, float]]:
    """Return the shares of picks that are corrupted and repeated, and the cover of clean rows, by selector."""
    return {
        name: {
            "corrupted": mean([mean([row.corrupted for row in pool if row.text in one]) for one in several]),
            "repeated": mean([1 - len({row.group for row in pool if row.text in one}) / len(one) for one in several]),
            "cover": mean([measure_cover(one, pool, helped) for one in several]),
        }
        for name, several in picks.items()
    }


def measure_cover(chosen: set[Text], pool: Sequence[Row], helped: Helped) -> float:
    """Return the mean share of the best help in the pool that chosen rows give clean rows which are not chosen."""
    there, clean = [row.text for row in pool], {row.text for row in pool if not row.corrupted}
    shares = []
    for place, target in enumerate(helped.targets):
        if target not in clean or target in chosen:
            continue
        help = {text: float(helped.utility[place, helped.places[text]]) for text in there if text != target}
        best = max(help.values())
        if best > 0:
            shares.append(max(0.0, max(help[text] for text in chosen)) / best)
    return mean(shares)


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN where there is nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def name_figures(means: Mapping[str, Mapping[str, float]], suffix: str) -> dict[str, float]:
    """Return the figures that the last line holds."""
    names = {"corrupted": ("default", "random", "embedding"), "cover": ("default", "random")}
    return {f"{key}_{name}{suffix}": round(means[name][key], 4) for key, own in names.items() for name in own}


def show(how: str, means: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table."""
    print(f"{f'exchanged {how} commands':<28} {'corrupted':>10} {'repeated':>10} {'cover':>10}")
    for name, own in means.items():
        print(f"{name:<28} " + " ".join(f"{own[key]:>10.3f}" for key in ("corrupted", "repeated", "cover")))
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
