"""The data card of an export: where the rows come from, how they were chosen, and what is known to be missing."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.selection.selectors import SELECTORS

HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {file}
---

# {rows} of {version}, chosen by {selector}

{rows} of the {pool:,} that the pool of {version} offers, in the order of choice: the first of them are what a smaller
budget would have chosen, but for caps, floors, shares of topics, optimisers `stochastic` and `partition`, and a pilot
that mixed random rows in. They stand in `{file}`, one JSON object per line, {about}.
"""
ABOUT = {
    "jsonl": "each as its raw file has it",
    "trl": "in the conversational format of TRL",
    "llamafactory": "in the sharegpt format of LLaMA-Factory",
    "axolotl": "as messages for axolotl's chat_template",
    "sharegpt": "in the ShareGPT format",
}
USE = {
    "trl": '`SFTTrainer(train_dataset=load_dataset("json", data_files="{file}", split="train"))`; {loss}.',
    "llamafactory": "Set `dataset_dir` to this folder and `dataset: {name}`; `dataset_info.json` describes the rows. "
    "Where only the last turns are to be learnt, set `mask_history: true`.",
    "axolotl": "`dataset.yaml` holds the entry for the list `datasets`, with `path` seen from this folder.",
}
PARTED = "the loss is that of the completions, which is the default (`completion_only_loss`)"
WHOLE = "set `assistant_only_loss=True`, or the questions are learnt, too"
UNLICENSED = "No licence, notice or readme lies beside the raw files: ask who gave them before you pass them on."


@dataclass(frozen=True)
class Facts:
    """What a card tells."""

    layout: str  # jsonl | trl | llamafactory | axolotl | sharegpt
    file: str  # that holds the rows
    name: str  # of the data set
    version: str
    raw: str  # the version's raw path, without the folders of this machine
    files: Sequence[str]  # of each row, from the raw folder's name on
    pool: int
    rejected: int
    parted: bool  # TRL's rows are prompts and completions
    gaps: Mapping[str, int]  # what the layout cannot say -> rows
    examples: Mapping[str, Any]  # the record of the examples' table
    selection: Mapping[str, Any]  # likewise of the subset
    chooser: str  # what chose, in words
    digests: Mapping[str, str]  # file -> sha256
    telling: Sequence[str]  # files about the raw data that stand in `source/`


def write_card(facts: Facts) -> str:
    """Return the text of a data card."""
    asked = facts.selection["parameters"]
    rows = _count(len(facts.files), "row")
    head = {"rows": rows, "pool": facts.pool, "version": facts.version, "selector": facts.chooser}
    parts = [
        HEAD.format(**head, file=facts.file, about=ABOUT[facts.layout]),
        _tell_use(facts),
        _tell_source(facts),
        f"## Licence\n\n{_tell_licence(facts)}",
        f"## Method\n\n{_tell_method(asked, facts.chooser)}",
        f"## Settings\n\nOf the choice:\n\n{_fence(asked)}\n\nOf the examples:\n\n"
        f"{_fence(facts.examples['parameters'] | {'seed': facts.examples['seed']})}",
        "## Digests\n\n" + _table(["file", "sha256"], [[f"`{file}`", f"`{d}`"] for file, d in facts.digests.items()]),
        f"## Known gaps\n\n{_tell_gaps(facts)}",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _tell_use(facts: Facts) -> str:
    if facts.layout not in USE:
        return ""
    loss = PARTED if facts.parted else WHOLE
    return "## Use\n\n" + USE[facts.layout].format(file=facts.file, name=facts.name, loss=loss)


def _tell_source(facts: Facts) -> str:
    counts = [[f"`{_show(file)}`", f"{rows:,}"] for file, rows in sorted(Counter(facts.files).items())]
    return f"## Source\n\nThe raw path is `{_show(facts.raw)}`.\n\n" + _table(["file", "rows chosen"], counts)


def _tell_licence(facts: Facts) -> str:
    if not facts.telling:
        return UNLICENSED
    named = ", ".join(f"[{name}](source/{name})" for name in facts.telling)
    return (
        f"With the raw files or beside them lie {named}: see what of it holds for these rows before you pass them on."
    )


def _tell_method(asked: Mapping[str, Any], chooser: str) -> str:
    selector = SELECTORS[asked["selector"]]
    objective = f", which maximises {asked['objective'].replace('_', ' ')}" if selector.objective else ""
    ((kind, amount),) = asked["budget"].items()
    return (
        f"Selector `{asked['selector']}`{objective}; source: {selector.source}. The budget is {kind.replace('_', ' ')} "
        f"{amount}.{'' if chooser == asked['selector'] else f' What stands here was chosen by {chooser}.'}"
    )


def _tell_gaps(facts: Facts) -> str:
    told = [f"- {_count(rows, 'row')}: {gap}." for gap, rows in facts.gaps.items()]
    if facts.rejected:
        told.append(f"- {_count(facts.rejected, 'raw row')} of the version could not be read, and none was chosen.")
    told.append("- Rows that earlier versions chose are not here.")
    if facts.layout != "jsonl":
        told.append("- Fields of the raw rows other than the conversation are not here; `--to jsonl` keeps them.")
    return "\n".join(told)


def _fence(value: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)}\n```"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *rows))


def _show(name: str) -> str:
    """Return the name of a file as text in a table of Markdown."""
    return "".join(one if one.isprintable() and one not in "|`" else repr(one)[1:-1] for one in name)


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def shorten_path(raw: Path) -> str:
    """Return a raw path without the folders of this machine: the last part of an absolute one.

    >>> shorten_path(Path("data/raw/v1")), shorten_path(Path("/mnt/disk/chats"))
    ('data/raw/v1', 'chats')
    """
    return raw.name if raw.is_absolute() else raw.as_posix()
