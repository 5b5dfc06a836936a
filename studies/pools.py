"""Pools of the study, built from public data by seed, with what is wrong in them kept aside.

    python -m studies.pools --data ../shared/data --out .cache/study/pools [--seed 0] [NAME...]

Each pool becomes a folder `NAME/seed=S/now` of raw rows: `pool.jsonl`, `held_out.jsonl` (clean rows whose prompts stand
in no pool, the same for every seed) and, where there is a target task, `target.jsonl`. Pools of two versions have a
folder `before` beside it. The field `planted` of a row says what was done to it (exchanged, cut, repeat, boilerplate),
and `group` which rows say the same; no selector reads either.
"""

import csv
import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

Row = dict[str, str]
Draw = np.random.Generator

VERSIONS = ("v1.0", "v1.5b", "v2.0", "v2.3", "2026-08")
COMMANDS = ("git", "docker", "gh", "npm", "cargo", "aws", "az", "systemd", "kubectl", "pacman")
APART = ("pio", "pueue", "hg", "choco", "dvc", "apt", "ansible", "go", "odps", "reg")  # of the confirmation pool alone
RARE = "docker"  # the command that is a target task
BOILERPLATE = re.compile(r"(--help|--version| -h| -V| help)$")  # of a response that any command has
LONGEST = {"tldr": 160, "dialogues": 240, "svamp": 240, "gsm8k": 380, "mbpp": 300}  # characters of prompt and response
ROWS = 192  # of a pool; some 170 are left where one prompt in ten validates, of wrong rows as large a share
HELD_OUT, TARGET = 96, 32
TRIES = 2000  # at an exchange
OPERATORS = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}
DIALOGUES = Path(__file__).parents[1] / "data/raw/v1"


@dataclass(frozen=True)
class Pool:
    """Raw rows of a pool, by the file that they stand in."""

    pool: Sequence[Row]
    held_out: Sequence[Row]
    target: Sequence[Row] = ()
    before: Sequence[Row] = ()  # of the version that this one continues from
    files: tuple[str, ...] = field(default=("pool", "held_out", "target"), init=False)


def keep_short(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the rows of at most `LONGEST` characters, each prompt once."""
    short = (row for row in rows if len(row["prompt"]) + len(row["response"]) <= LONGEST[kind] and row["response"])
    return list({" ".join(row["prompt"].lower().split()): row for row in short}.values())


@cache
def read_tldr(data: Path, version: str) -> tuple[Row, ...]:
    """Return the rows of a version of tldr; the topic of a row is its command, without that of the subcommand."""
    with gzip.open(data / f"tldr/{version}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return tuple({**row, "topic": row["topic"].partition("-")[0]} for row in rows)


def list_tldr(data: Path, version: str, commands: Sequence[str] = COMMANDS) -> list[Row]:
    """Return the short rows of some commands, without those that any command has."""
    rows = keep_short(read_tldr(data, version), "tldr")
    return [row for row in rows if row["topic"] in commands and not BOILERPLATE.search(row["response"])]


def list_svamp(data: Path) -> list[Row]:
    """Return word problems of one operation, with the calculation as the response and the operation as the topic."""
    with open(data / "svamp/mawps-asdiv-a_svamp/train.csv", encoding="utf-8", newline="") as file:
        asked = [row for row in csv.DictReader(file) if len(row["Equation"].split()) == 3]
    return keep_short((_read_problem(row) for row in asked), "svamp")


def _read_problem(row: Mapping[str, str]) -> Row:
    numbers = {f"number{place}": f"{float(each):g}" for place, each in enumerate(row["Numbers"].split())}
    text = re.sub(r"number\d+", lambda found: numbers.get(found[0], found[0]), row["Question"])
    sign, *sides = row["Equation"].split()
    left, right = (numbers.get(side, side) for side in sides)
    answer = f"{left} {sign} {right} = {float(row['Answer']):g}"
    return {"prompt": re.sub(r" ([.,?])", r"\1", text), "response": answer, "topic": OPERATORS[sign]}


def list_gsm8k(data: Path, part: str) -> list[Row]:
    """Return short problems of grade-school mathematics."""
    lines = (data / f"gsm8k/{part}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = ({"prompt": row["question"], "response": row["answer"], "topic": "gsm8k"} for row in map(json.loads, lines))
    return keep_short(rows, "gsm8k")


def list_mbpp(data: Path, *, tests: bool) -> list[Row]:
    """Return short programs: those of the data set's test split (task 11 to 510), or the others."""
    lines = (data / "mbpp/mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if (11 <= row["task_id"] <= 510) == tests]
    texts = ((row["text"], row["code"].replace("\r", "")) for row in rows)
    return keep_short(({"prompt": text, "response": code, "topic": "mbpp"} for text, code in texts), "mbpp")


def list_dialogues() -> list[Row]:
    """Return the short dialogues of the project's own sample data, without those that are planted there."""
    lines = (line for path in sorted(DIALOGUES.glob("*.jsonl")) for line in path.open(encoding="utf-8"))
    return keep_short((row for row in map(json.loads, lines) if "planted" not in row), "dialogues")


def fix(name: str) -> Draw:
    """Return the generator of what all seeds of a pool share."""
    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:12], 16))


def pick(rows: Sequence[Row], count: int, draw: Draw) -> list[Row]:
    """Return some rows at random.

    Raises:
        ValueError: there are fewer.
    """
    if count > len(rows):
        raise ValueError(f"{count} rows are wanted and there are {len(rows)}; ask for fewer, or raise LONGEST")
    return [rows[place] for place in draw.permutation(len(rows))[:count]]


def set_apart(rows: Sequence[Row], name: str, count: int = HELD_OUT) -> tuple[list[Row], list[Row]]:
    """Return the rows that a pool is drawn from and its held-out ones, which depend on its name alone."""
    held_out = pick(rows, count, fix(name))
    asked = {row["prompt"] for row in held_out}
    return [row for row in rows if row["prompt"] not in asked], held_out


def exchange(rows: Sequence[Row], count: int, draw: Draw, *, within: bool | None) -> list[Row]:
    """Return rows of which some, drawn at random, have the response of another of them.

    Args:
        rows: of the pool.
        count: how many have another's response.
        draw: of these rows and of the order in which they give their responses on.
        within: their topic | false: across topics | null: whatever their topics.

    Raises:
        ValueError: no such exchange was found.
    """
    for _ in range(TRIES):
        places = draw.permutation(len(rows))[:count].tolist()
        given = _give_on(rows, places, draw, within=within)
        if given is not None:
            found = [dict(row) for row in rows]
            for place, other in zip(places, given, strict=True):
                found[place] |= {"response": rows[other]["response"], "planted": "exchanged"}
            return found
    raise ValueError(f"the responses of {count} of {len(rows)} rows cannot be exchanged; give more rows a topic")


def _give_on(rows: Sequence[Row], places: Sequence[int], draw: Draw, *, within: bool | None) -> list[int] | None:
    """Return for each place the one whose response it gets, all different ones; None where this order gives none."""
    free, given = set(places), {}
    for place in draw.permutation(np.array(places)).tolist():
        fits = [other for other in sorted(free) if _fits(rows[place], rows[other], within)]
        if not fits:
            return None
        given[place] = fits[int(draw.integers(len(fits)))]
        free.remove(given[place])
    return [given[place] for place in places]


def _fits(row: Row, other: Row, within: bool | None) -> bool:
    same = row["topic"] == other["topic"]
    return row["response"] != other["response"] and (within is None or same == within)


def cut_off(rows: Sequence[Row], count: int, draw: Draw) -> list[Row]:
    """Return rows of which some have a response that ends between a third and two thirds of it."""
    found, long = [dict(row) for row in rows], [place for place, row in enumerate(rows) if len(row["response"]) > 5]
    for place in draw.permutation(long)[:count].tolist():
        text = rows[place]["response"]
        found[place] |= {"response": text[: int(len(text) * draw.uniform(1 / 3, 2 / 3))].rstrip(), "planted": "cut"}
    return found


def find_copies(data: Path) -> list[list[Row]]:
    """Return rows that stand in all versions of tldr, word for word or edited, a list of them for each."""
    found = []
    pages = {version: read_tldr(data, version) for version in VERSIONS}
    prompts = {version: {row["prompt"]: row for row in rows} for version, rows in pages.items()}
    answers = {version: {(row["topic"], row["response"]): row for row in rows} for version, rows in pages.items()}
    for row in list_tldr(data, "v2.3", sorted({row["topic"] for row in pages["v2.3"]} - set(APART))):
        same = (row["topic"], row["response"])
        copies = [prompts[version].get(row["prompt"]) or answers[version].get(same) for version in VERSIONS]
        if all(copies):
            found.append([{**copy, "group": row["prompt"]} for copy in copies])
    return found


def list_boilerplate(data: Path, version: str = "v2.3") -> list[Row]:
    """Return rows that nearly every command has: how to show its help or its version."""
    rows = [row for row in keep_short(read_tldr(data, version), "tldr") if row["topic"] not in APART]
    return [
        {**row, "planted": "boilerplate", "group": f"boilerplate {found[1].strip(' -').lower()[:1]}"}
        for row in rows
        if (found := BOILERPLATE.search(row["response"])) and len(row["response"].split()) == 2
    ]


def make_clean(rows: Sequence[Row], name: str, draw: Draw) -> Pool:
    """Return a pool of rows as they are."""
    left, apart = set_apart(rows, name)
    return Pool(pick(left, ROWS, draw), apart)


def make_noisy(rows: Sequence[Row], name: str, draw: Draw, share: float, how: str) -> Pool:
    """Return a pool in which a share of the responses is exchanged, across or within topics, or cut off."""
    left, apart = set_apart(rows, name)
    chosen, count = pick(left, ROWS, draw), round(share * ROWS)
    if how == "cut":
        return Pool(cut_off(chosen, count, draw), apart)
    return Pool(exchange(chosen, count, draw, within=how == "within"), apart)


def make_redundant(data: Path, name: str, draw: Draw, groups: int = 20, boilerplate: int = 24) -> Pool:
    """Return a pool of rows in all their versions, of boilerplate, and of rows that stand alone."""
    copies = find_copies(data)
    _, held_out = set_apart([rows[-2] for rows in copies], name)
    asked = {row["prompt"] for row in held_out}
    left = [rows for rows in copies if not asked & {row["prompt"] for row in rows}]
    some = [left[place] for place in draw.permutation(len(left))[: ROWS - 4 * groups - boilerplate]]
    rows = [{**row, "planted": "repeat"} if place else row for one in some[:groups] for place, row in enumerate(one)]
    rows += [one[-2] for one in some[groups:]] + pick(list_boilerplate(data), boilerplate, draw)
    strangers = [{key: row[key] for key in row if key not in ("group", "planted")} for row in held_out]
    return Pool([rows[place] for place in draw.permutation(len(rows))], strangers)


def make_rare(common: Sequence[Row], rare: Sequence[Row], name: str, draw: Draw, held_out: int) -> Pool:
    """Return a pool of which one row in twenty is of the target task, which is held out; other rows of it are given."""
    left, apart = set_apart(rare, name, held_out)
    ours = pick(left, 2 * TARGET, draw)
    rows = pick(common, 20 * TARGET - TARGET, draw) + ours[:TARGET]
    return Pool([rows[place] for place in draw.permutation(len(rows))], apart, ours[TARGET:])


def make_versions(data: Path, name: str, draw: Draw, old: str, new: str) -> Pool:
    """Return a pool of rows that are new or edited in a version, and as many of the version before it."""
    before, now = list_tldr(data, old), list_tldr(data, new)
    known = {row["prompt"]: row["response"] for row in before}
    fresh, held_out = set_apart([row for row in now if known.get(row["prompt"]) != row["response"]], name)
    asked = {row["prompt"] for row in held_out}
    earlier = pick([row for row in before if row["prompt"] not in asked], ROWS, draw)
    there = {row["prompt"]: row for row in now}
    kept = [there[row["prompt"]] for row in earlier if there.get(row["prompt"]) == row]
    chosen = pick([row for row in fresh if row["prompt"] not in {one["prompt"] for one in kept}], ROWS, draw)
    return Pool(kept + chosen, held_out, before=earlier)


def make_mixture(data: Path, name: str, draw: Draw, target: str | None) -> Pool:
    """Return a pool of four tasks, a quarter each; of the target task rows are given, and it alone is held out."""
    tasks = {"tldr": list_tldr(data, "v2.3"), "gsm8k": list_gsm8k(data, "test")}
    tasks |= {"mbpp": list_mbpp(data, tests=True), "dialogues": list_dialogues()}
    rows, held_out, given = [], [], []
    for task, ours in tasks.items():
        wanted = 24 if target is None else 64 if task == target else 0
        left, apart = set_apart([{**row, "topic": task} for row in ours], f"{name} {task}", wanted)
        some = pick(left, ROWS // 4 + (TARGET if task == target else 0), draw)
        rows, held_out, given = rows + some[: ROWS // 4], held_out + apart, given + some[ROWS // 4 :]
    return Pool([rows[place] for place in draw.permutation(len(rows))], held_out, given)


def make_confirmation(data: Path, name: str, draw: Draw) -> Pool:
    """Return a pool of mathematics and programs: a fifth has another's response, and a fifth repeats a good row."""
    kinds, fifth = (list_gsm8k(data, "train"), list_mbpp(data, tests=False)), round(0.2 * ROWS)
    parts = [set_apart(rows, f"{name} {place}", 48) for place, rows in enumerate(kinds)]
    rows = [row for left, _ in parts for row in pick(left, (ROWS - fifth) // 2, draw)]
    mixed = [{**row, "group": row["prompt"]} for row in exchange(rows, fifth, draw, within=None)]
    good = [row for row in mixed if "planted" not in row]
    whole = mixed + [{**row, "planted": "repeat"} for row in pick(good, fifth, draw)]
    return Pool([whole[place] for place in draw.permutation(len(whole))], [row for _, apart in parts for row in apart])


def build(name: str, data: Path, seed: int) -> Pool:
    """Return the rows of a pool; of another seed the same held-out rows, and a pool that is drawn anew."""
    draw = np.random.default_rng([seed, int(fix(name).integers(2**31))])
    tldr = list_tldr(data, "v2.3")
    others = [row for row in tldr if row["topic"] != RARE]
    shares = {"20": 0.2, "50": 0.5}
    _, *words = name.split("-")
    made: dict[str, Callable[[], Pool]] = {
        "clean-dialogues": lambda: make_clean(list_dialogues(), name, draw),
        "clean-svamp": lambda: make_clean(list_svamp(data), name, draw),
        "clean-tldr": lambda: make_clean(tldr, name, draw),
        "redundant-tldr": lambda: make_redundant(data, name, draw),
        "rare-svamp": lambda: make_rare(tldr, list_svamp(data), name, draw, HELD_OUT),
        "rare-command": lambda: make_rare(others, [row for row in tldr if row["topic"] == RARE], name, draw, 64),
        "versions-v2.0-v2.3": lambda: make_versions(data, name, draw, "v2.0", "v2.3"),
        "versions-v2.3-2026": lambda: make_versions(data, name, draw, "v2.3", "2026-08"),
        "mixture-plain": lambda: make_mixture(data, name, draw, None),
        "mixture-target": lambda: make_mixture(data, name, draw, "gsm8k"),
        "confirm-tldr": lambda: make_noisy(list_tldr(data, "v1.5b", APART), name, draw, 0.3, "within"),
        "confirm-gsm8k-mbpp": lambda: make_confirmation(data, name, draw),
    }
    made |= {
        f"noisy-{how}-{share}": lambda: make_noisy(tldr, name, draw, shares[words[-1]], words[0])
        for how, share in (("across", "20"), ("across", "50"), ("within", "20"), ("within", "50"), ("cut", "20"))
    }
    if name not in made:
        raise ValueError(f"there is no pool {name!r}; known: {', '.join(made)}")
    return made[name]()


def write(pool: Pool, folder: Path) -> None:
    """Write the raw folder of a pool, and that of the version before it, whole or not at all."""
    parts = {f"now/{name}": getattr(pool, name) for name in pool.files}
    parts |= {"before/pool": pool.before, "before/held_out": pool.held_out if pool.before else ()}
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    for name, rows in parts.items():
        if rows:
            path = draft / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(draft, folder)


def main(
    names: Annotated[list[str], typer.Argument(help="Pools.")],
    *,
    data: Annotated[Path, typer.Option(help="Folder with tldr, gsm8k, svamp and mbpp.")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="Folder that pools are written into.")] = Path(".cache/study/pools"),
    seed: int = 0,
) -> None:
    """Build pools that are not there yet."""
    for name in names:
        folder = out / name / f"seed={seed}"
        if not folder.exists():
            write(build(name, data, seed), folder)


if __name__ == "__main__":
    typer.run(main)
