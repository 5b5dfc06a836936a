"""What a run of the pipeline amounts to: limits that a budget sets, and the few lines that a person reads first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

SAYING = 16  # checked targets from which on their shares say something
IN_CONTEXT = ("chosen-random", "chosen-base")  # differences of the in-context learner that are worth a note
NO_CHANCE = (
    "no random rows were trained on, so nothing is known about what chance would do; to know it, set "
    "finetuning.arms: {chosen: [0], random: [0, 1, 2]}"
)


class ArmSummary(NamedTuple):
    """An arm's held-out loss."""

    name: str
    rows: int  # that it was trained on
    loss: float  # nats per response token
    low: float  # of the bootstrap interval
    high: float
    seeds: int  # runs that the loss is averaged over


@dataclass(frozen=True)
class Summary:
    """What a run of the pipeline ends with."""

    arms: list[ArmSummary]
    pairs_scored: int
    notes: list[str]  # differences in loss, and what the audit found worth knowing


def limit_spending(budget: Mapping[str, int | float], pool_rows: int) -> tuple[str, int]:
    """Return the unit of a budget and the most that may be spent; a fraction is rounded down to whole rows.

    >>> limit_spending({"fraction": 0.3}, 10), limit_spending({"response_tokens": 500}, 10)
    (('rows', 3), ('response tokens', 500))
    """
    ((kind, amount),) = budget.items()
    unit = "response tokens" if kind == "response_tokens" else "rows"
    return unit, int(Fraction(str(amount)) * pool_rows) if kind == "fraction" else int(amount)


def spread_caps(caps: Mapping[str, int], topics: Sequence[str]) -> dict[str, int]:
    """Return the cap of each topic that has one; `"*"` stands for every topic not named.

    >>> spread_caps({"ai": 3, "*": 1}, ["ai", "food"])
    {'ai': 3, 'food': 1}
    """
    return {topic: caps.get(topic, caps.get("*", 0)) for topic in topics if topic in caps or "*" in caps}


def summarise(
    metrics: Mapping[str, Any],
    utility: Mapping[str, Any],
    audit: Mapping[str, Any],
    selection: Mapping[str, Any] | None = None,
) -> Summary:
    """Return the summary of a version.

    Args:
        metrics: of the evaluation: `arms` (of each rows, seeds, loss, loss_low, loss_high, loss_by_seed) and
            `differences` (loss, low, high); maybe `in_context`, with `differences` and `demos`; maybe `continual`:
            `previous`, and `stability` and `plasticity` of arms (loss, low, high); maybe `general`: `rows`, and the
            same two; maybe `task_metric` and `floor`, with `correct` (and its interval) and `cut_answers` of arms;
            maybe of arms `faults`: per seed, `planted` (word -> rows) and `repeats`.
        utility: `pairs_scored`, and `why` where nothing was to be scored.
        audit: lists of topics: `coverage`, `held_out_share`; `changes`: kept, edited, new and withdrawn `rows`;
            `withdrawn_learnt`: rows; empty where the audit has not run.
        selection: maybe `faults` of `pool` and `chosen`, as those of arms; maybe `gate`: `by`, `gated_rows`, `faults`;
            maybe `pilot`: `why`, `validation` (rows, of), `seconds`; maybe `rows_without_quality`, `zero_gain_picks`
            and, of a choice that had checked targets, `checked`: `targets`, `facility_location_share`, `random_share`.
    """
    arms = [
        ArmSummary(name, arm["rows"], arm["loss"], arm["loss_low"], arm["loss_high"], arm["seeds"])
        for name, arm in sorted(metrics["arms"].items(), key=_by_rows)
    ]
    chosen = selection or {}
    notes = [*_note(metrics, utility, audit), *_tell_gate(chosen.get("gate"))]
    notes += _tell_choice(chosen)
    notes += _tell_pilot(chosen.get("pilot"))
    notes += _tell_faults(metrics["arms"], chosen.get("faults"))
    return Summary(arms, utility["pairs_scored"], notes)


def _note(metrics: Mapping[str, Any], utility: Mapping[str, Any], audit: Mapping[str, Any]) -> list[str]:
    notes = [_compare(name, found) for name, found in metrics.get("differences", {}).items() if "chosen-" in name]
    notes += [NO_CHANCE] if "chosen" in metrics["arms"] and "random" not in metrics["arms"] else []
    for name, arm in metrics["arms"].items():
        losses = [f"{loss:.4f}" for loss in arm["loss_by_seed"].values()]
        notes += [f"loss of {name} by seed: {', '.join(losses)}"] if len(losses) > 1 else []
    shown = metrics.get("in_context", {"differences": {}})
    wanted = {name: found for name, found in shown["differences"].items() if name in IN_CONTEXT}
    notes += [f"in context, {shown['demos']} demos: {_compare(name, found)}" for name, found in wanted.items()]
    notes += _tell_task(metrics) + _tell_task(shown, f"in context, {shown.get('demos')} demos: ")
    notes += _tell_changes(metrics["continual"]) if "continual" in metrics else []
    notes += _tell_general(metrics["general"]) if "general" in metrics else []
    notes += [f"no pairs: {utility['why']}"] if "why" in utility else []
    notes += _tell_rows(audit)
    for name, what in (("coverage", "without a chosen row"), ("held_out_share", "with a low held-out share")):
        found = audit.get(name, [])
        if found:
            notes.append(f"{_count(len(found), 'topic')} {what}: {', '.join(found[:8])}{', ...' * (len(found) > 8)}")
    return notes


def _count(number: int, thing: str) -> str:
    """Return a number of things in words.

    >>> _count(1, "row"), _count(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _tell_gate(gate: Mapping[str, Any] | None) -> list[str]:
    """Return a note on how many rows left before the choice, and what is known to be wrong with some of them."""
    if gate is None:
        return []
    wrong = ", ".join(f"{count:,} planted {word}" for word, count in gate["faults"]["planted"].items())
    rows = _count(gate["gated_rows"], "row")
    return [f"gate by {gate['by']}: {rows} of the pool left before the choice{wrong and f' ({wrong})'}"]


def _tell_choice(selection: Mapping[str, Any]) -> list[str]:
    """Return notes on what a choice by an objective was not told or had nothing left to gain by, and what it covers."""
    unknown, idle, notes = selection.get("rows_without_quality"), selection.get("zero_gain_picks"), []
    checked = selection.get("checked") or {"facility_location_share": None}
    if unknown:
        rows = f"{_count(unknown, 'row')} of the pool"
        notes.append(f"no help was measured for {rows} that may be chosen: the median of their topic stands for it")
    if idle:
        follow = "it follows" if idle == 1 else "they follow"
        notes.append(
            f"nothing was left to gain for {_count(idle, 'chosen row')}: {follow} by quality, then by how little the "
            "others cover them"
        )
    if checked["facility_location_share"] is not None:
        share, chance, many = (checked[name] for name in ("facility_location_share", "random_share", "targets"))
        few = f"; fewer than {SAYING} say little" if many < SAYING else ""
        notes.append(
            f"of {many} checked targets the choice covers {share:.0%} of what can be, random rows {chance:.0%}{few}"
        )
    return notes


def _tell_pilot(pilot: Mapping[str, Any] | None) -> list[str]:
    """Return a note on what brief trainings found before the choice was trained on, and what became of it."""
    if pilot is None:
        return []
    measured = pilot["validation"]
    return [f"pilot on {measured['rows']:,} {measured['of']} rows, {pilot['seconds']:.1f} s: {pilot['why']}"]


def _tell_faults(arms: Mapping[str, Any], faults: Mapping[str, Any] | None) -> list[str]:
    """Return a note per kind of row that is known to be wrong, on how many the pool has and how many each choice took.

    Of arm random it is the mean over its seeds.
    """
    if faults is None:
        return []
    drawn = arms.get("random", {}).get("faults", [])
    notes = []
    for word, there in faults["pool"]["planted"].items():
        taken = faults["chosen"]["planted"].get(word, 0)
        notes.append(_tell_taken(f"planted {word}", there, taken, [one["planted"].get(word, 0) for one in drawn]))
    if faults["pool"]["repeats"]:
        counts = faults["pool"]["repeats"], faults["chosen"]["repeats"]
        notes.append(_tell_taken("repeats of other rows", *counts, [one["repeats"] for one in drawn]))
    return notes


def _tell_taken(what: str, there: int, taken: int, drawn: Sequence[int]) -> str:
    chance = f", {sum(drawn) / len(drawn):.1f} of the random choice" if drawn else ""
    return f"{what}: {_count(there, 'row')} of the pool, {taken:,} of the choice{chance}"


def _tell_rows(audit: Mapping[str, Any]) -> list[str]:
    """Return notes on what the version changed, where it continues from another one, and on what it withdrew."""
    counts = {name: found["rows"] for name, found in audit.get("changes", {}).items()}
    taught = audit.get("withdrawn_learnt", [])
    notes = []
    if any(count for name, count in counts.items() if name != "new"):
        notes.append(f"distinct rows: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
    if taught:
        rows, are = _count(len(taught), "row"), "is" if len(taught) == 1 else "are"
        notes.append(f"{rows} that earlier versions trained on {are} withdrawn or edited, first {taught[0]}")
    return notes


def _tell_changes(continual: Mapping[str, Any]) -> list[str]:
    """Return a note per arm on what it forgot of the version before, then on what it learnt of the new one."""
    previous, notes = continual["previous"], []
    for measured, rows in (("stability", f"{previous}'s held-out rows"), ("plasticity", "its own held-out rows")):
        notes += [_tell_gain(rows, name, previous, gain) for name, gain in continual[measured].items()]
    return notes


def _tell_general(general: Mapping[str, Any]) -> list[str]:
    """Return a note per arm on what it forgot that nobody trains on."""
    rows = f"{general['rows']} general rows"
    return [_tell_gain(rows, name, "the base", gain) for name, gain in general["stability"].items()]


def _tell_gain(rows: str, name: str, start: str, gain: Mapping[str, float]) -> str:
    change, low, high = (0 - gain[key] for key in ("loss", "high", "low"))
    verdict = "learnt" if high < 0 else "forgotten" if low > 0 else "no clear change"
    return f"{rows}: loss of {name} since {start} {change:+.4f} ({low:+.4f} to {high:+.4f}): {verdict}"


def _tell_task(metrics: Mapping[str, Any], where: str = "") -> list[str]:
    """Return a note per arm on how many answers were right, or one where none was in any arm."""
    if "task_metric" not in metrics:
        return []
    if metrics["floor"]:
        rows = metrics.get("generated_rows", metrics["held_out_rows"])
        return [
            f"{where}{metrics['task_metric']}: no arm answered any of {rows} held-out rows right (a floor of 0), so it "
            "tells nothing of the arms"
        ]
    notes = []
    for name, arm in metrics["arms"].items():
        cut = f"; {arm['cut_answers']:.0%} of its answers were cut at evaluation.new_tokens"
        share = f"{arm['correct']:.3f} ({arm['correct_low']:.3f} to {arm['correct_high']:.3f})"
        notes.append(f"{where}{metrics['task_metric']} of {name}: {share}{cut if arm['cut_answers'] else ''}")
    return notes


def _by_rows(arm: tuple[str, Mapping[str, Any]]) -> tuple[int, str]:
    """Sort arms by the rows they were trained on, the base first."""
    return arm[1]["rows"], arm[0]


def _compare(name: str, difference: Mapping[str, float]) -> str:
    low, high = difference["low"], difference["high"]
    verdict = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
    if low == high != 0:  # of one row, whichever is drawn
        verdict = "too few held-out rows for a verdict"
    one, other = name.split("-")
    return f"loss of {one} minus {other}: {difference['loss']:+.4f} ({low:+.4f} to {high:+.4f}): {verdict}"
