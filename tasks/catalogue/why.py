"""Why a row was chosen or not, in sentences, from what the artifacts of a version say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from tamis.evaluation.summary import spread_caps
from tasks.artifacts.tables import digest_inputs, provenance, read_json
from tasks.catalogue.derived import EACH, UNUSED, count_first, list_bounds, name_score
from tasks.selection.selectors import CHANCE, SELECTORS, name_chooser

LONGEST = 400  # characters of a text that a sentence quotes
NEAR = 3  # partners and rows of almost the same words that are named
NOT_SCORES = ("gain", "cover", "gate", "response_tokens")  # which other sentences tell
ROW = """
    SELECT e.*, s.chosen, s.rank, s.gain, s.objective, s.covered_by, s.cover, s.gated, s.gate_score,
        s.gate_usual
    FROM examples e LEFT JOIN subset s USING (version, id)
    WHERE e.version = $version AND e.id = $id ORDER BY e.used DESC, e.row LIMIT 1"""
QUANTILES = """
    SELECT score, value, quantile, equal FROM (SELECT *, count(*) OVER (PARTITION BY score, value) - 1 AS equal,
        percent_rank() OVER (PARTITION BY score ORDER BY value) AS quantile
        FROM scores WHERE version = $version) WHERE id = $id ORDER BY score"""
SORTED = """
    SELECT any_value(value) FILTER (id = $id), min(value) FILTER (chosen AND rank > $first)
    FROM scores JOIN subset USING (version, id) WHERE version = $version AND score = $score"""
PARTNERS = f"""
    SELECT p.{{other}}, p.utility, e.prompt FROM pairs p JOIN {EACH} e ON e.version = p.version AND e.id = p.{{other}}
    WHERE p.version = $version AND p.{{self}} = $id AND p.{{other}} <> $id AND p.utility > 0
    ORDER BY p.utility DESC, p.{{other}} LIMIT {NEAR}"""
TOPIC = """
    SELECT count(*) AS pool, count(*) FILTER (chosen) AS chosen, max(rank) AS last FROM subset
    WHERE version = $version AND topic = $topic"""
DECIDED = """
    SELECT kind, "by", "when", because FROM decisions WHERE version = $version AND id IN (SELECT o.id FROM examples o
        JOIN examples e USING (version, same_as) WHERE e.version = $version AND e.id = $id)"""
WAITING = """
    SELECT d.version, d.id, any_value(o.same_as) AS same_as FROM decisions d
    JOIN examples o ON o.version = d.version AND o.id = d.id
    JOIN examples e ON e.version = d.version AND e.same_as = o.same_as
    LEFT JOIN subset s ON s.version = d.version AND s.id = e.id
    GROUP BY d.version, d.id, d.kind
    HAVING (d.kind = 'veto' AND bool_or(coalesce(s.chosen, false)))
        OR (d.kind = 'pin' AND bool_or(s.id IS NOT NULL) AND NOT bool_or(coalesce(s.chosen, false)))"""
ALIKE = f"""
    WITH words AS (SELECT id, chosen, coalesce(near_duplicate_of, row) AS words FROM examples
        LEFT JOIN subset USING (version, id) WHERE version = $version AND (used OR duplicate_of IS NULL))
    SELECT id, coalesce(chosen, false) FROM words WHERE id <> $id
    AND words IN (SELECT words FROM words WHERE id = $id) ORDER BY 2 DESC, 1 LIMIT {NEAR}"""


@dataclass(frozen=True)
class Story:
    """What is told of a row in a version."""

    version: str
    id: str
    state: str  # chosen | left out | gated | not in the pool
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A row of a version, with all that its story reads."""

    connection: duckdb.DuckDBPyConnection
    version: str
    id: str
    row: Mapping[str, Any]
    selection: Mapping[str, Any]  # selection.json
    views: frozenset[str]
    made: Mapping[str, Any]  # the choice's record of what it was made by

    @property
    def pinned(self) -> bool:
        """Return whether the choice was made with a pin of the row, whatever is decided of it now."""
        pins = self.selection.get("pins") or {}
        return self.row["same_as"] in self.made.get("pinned", ()) and self.row["rank"] <= pins.get("chosen", 0)

    @cached_property
    def topic(self) -> tuple[int, int, int | None]:
        """Return how many rows of its topic are in the pool, how many of these are chosen, and the rank of the last."""
        ((pool, chosen, last),) = self.rows(TOPIC, topic=self.row["topic"])
        return pool, chosen, last

    @property
    def bound(self) -> tuple[int, str] | None:
        """Return the most rows of its topic that could be chosen, and what says so; None where all could."""
        found = list_bounds(self.selection).get(self.row["topic"])
        return found if found is not None and found[0] < self.topic[0] else None

    @cached_property
    def sorted(self) -> tuple[str, float, float] | None:
        """Return the score that the choice took the largest of, the row's, and the lowest that was chosen; or None."""
        name = name_score(self.selection) if "scores" in self.views else None
        if name is None:
            return None
        ((own, lowest),) = self.rows(SORTED, score=name, first=count_first(self.selection))
        return None if own is None or lowest is None else (name, own, lowest)

    def rows(self, sql: str, **more: Any) -> list[tuple]:
        """Return what a query finds of this row."""
        asked = {"version": self.version, "id": self.id} | more
        known = {name: value for name, value in asked.items() if f"${name}" in sql}
        return self.connection.execute(sql, known).fetchall()


def tell(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    id: str,
    *,
    views: frozenset[str],
    root: Path,
    enters: Mapping[str, float | None] | None = None,
) -> Story | None:
    """Return the story of a row in a version; None where the version has no such row.

    Args:
        connection: to the catalogue.
        version: the data version.
        id: the example's, in full.
        views: that the catalogue has, examples and subset among them.
        root: the project's folder.
        enters: of rows, the least share of the pool by which a budget takes them, of those that were tried; None: no
            budget was tried.
    """
    answer = connection.execute(ROW, {"version": version, "id": id})
    names, found = [column[0] for column in answer.description], answer.fetchone()
    if found is None:
        return None
    folder = Path(root) / f"data/selection/version={version}"
    selection, made = read_json(folder / "selection.json"), provenance(folder / "subset.parquet")
    asked = Asked(connection, version, id, dict(zip(names, found, strict=True)), selection, views, made["parameters"])
    state = _name_state(asked.row)
    return Story(version, id, state, (*_tell_other(root, version, made), *_tell(asked, state, enters)))


def _name_state(row: Mapping[str, Any]) -> str:
    if row["chosen"] is None:
        return "not in the pool"
    return "chosen" if row["chosen"] else "gated" if row["gated"] else "left out"


def _tell(asked: Asked, state: str, enters: Mapping[str, float | None] | None) -> Iterator[str]:
    yield from _tell_decided(asked)
    if state == "not in the pool":
        yield _tell_outside(asked.row)
        return
    if state == "chosen":
        yield _tell_rank(asked)
    elif state == "gated":
        yield _tell_gate(asked)
    else:
        yield from _tell_left_out(asked)
    if enters is not None and state != "gated":
        yield _tell_entry(asked, enters.get(asked.id))
    yield from _tell_scores(asked)
    yield from _tell_partners(asked)
    yield from _tell_alike(asked)
    yield from _tell_topic(asked)


def _tell_other(root: Path, version: str, made: Mapping[str, Any]) -> Iterator[str]:
    """Yield that a version's choice and its examples are of different runs, where they are."""
    examples = Path(root) / f"data/examples/version={version}/examples.parquet"
    for name, now in digest_inputs(examples).items():
        if made["inputs"].get(name, now) != now:
            yield (
                f"The choice was made of other examples than those of {version} now, so what follows may not fit; "
                f"`tamis run {version}` chooses anew."
            )


def _tell_decided(asked: Asked) -> Iterator[str]:
    """Yield what a person decided of the row, or of one with its text, and whether that is honoured yet."""
    if "decisions" not in asked.views:
        return
    for kind, by, when, because in asked.rows(DECIDED):
        yield f"{by} {'vetoed' if kind == 'veto' else 'pinned'} it on {when[:10]}: {because}"
    late = f"SELECT id FROM ({WAITING}) WHERE version = $version AND same_as = $same"
    if asked.rows(late, same=asked.row["same_as"]):
        yield f"The choice was made before that, and does not honour it yet; `tamis run {asked.version}` does."


def _tell_outside(row: Mapping[str, Any]) -> str:
    reason = row["unused_because"]
    if reason is not None:
        return f"It was not chosen from: {UNUSED.get(reason, reason)}."
    if row["split"] != "pool":
        return f"It was not chosen from: it is of the {row['split'].replace('_', '-')} rows."
    return "Nothing has been chosen in this version yet."


def _tell_rank(asked: Asked) -> str:
    row, chosen = asked.row, asked.selection.get("chosen_rows")
    by = name_chooser(asked.selection)
    pinned = asked.pinned
    if pinned:
        now = "decisions" in asked.views and any(kind == "pin" for kind, *_ in asked.rows(DECIDED))
        by = "that decision" if now else "a pin that is taken back since"
    said = f"It was chosen by {by} as number {row['rank']}{f' of {chosen:,}' if chosen else ''}"
    if row["gain"] is None:
        return f"{said}."
    if row["gain"] == 0 and not pinned:
        return (
            f"{said}: nothing was left to gain, so that rows follow by quality, then by how little others cover them."
        )
    return f"{said}, and added {row['gain']:.4g} to the objective, which was {row['objective']:.4g} then."


def _tell_gate(asked: Asked) -> str:
    gate = asked.selection.get("gate") or {}
    by, worst = gate.get("by", "its score"), gate.get("worst_kept")
    known, usual = asked.row["gate_score"], asked.row["gate_usual"]
    left = f"It left before the choice, by the gate {by}."
    if known is None or usual is None:
        return left
    apart = f"It has {known:.4g}, {_tell_apart(known - usual)} what is usual in its topic ({usual:.4g})"
    stayed = f"; the worst row that stayed is {_tell_apart(worst)} that of its own" if worst is not None else ""
    return f"{left} {apart}{stayed}."


def _tell_apart(difference: float) -> str:
    return f"{abs(difference):.4g} {'below' if difference < 0 else 'above'}"


def _tell_left_out(asked: Asked) -> Iterator[str]:
    by, row, full = asked.row["covered_by"], asked.row, _tell_full(asked)
    if by is None and asked.sorted is not None:
        yield from _tell_sorted(asked, full)
        return
    if full is not None:
        yield f"It was not chosen: {full}."
    if by is None:
        if asked.selection.get("objective") is None:  # rows were drawn, or sorted by a score
            yield f"It was not chosen: {name_chooser(asked.selection)} took others."
            yield from _tell_no_score(asked)
        else:
            yield "It was not chosen, and no chosen row stands for it."
        return
    found = asked.rows(f"SELECT prompt, response FROM {EACH} WHERE version = $version AND id = $by LIMIT 1", by=by)
    prompt, response = found[0] if found else ("", "")
    cover = f"{row['cover']:.4g}"
    if asked.selection.get("objective_name") == "mutual_information":
        yield f"It was not chosen: others serve the target task better. Most like it of them is {by}, {cover}."
    elif full is not None:
        yield f"Of those that were chosen, the chosen row {by} stands for it best, by {cover}."
    else:
        yield f"It was not chosen: the chosen row {by} stands for it best, by {cover}."
    yield f"It says: {_cut(row['prompt'])} -> {_cut(row['response'])}"
    yield f"The chosen row says: {_cut(prompt)} -> {_cut(response)}"


def _tell_sorted(asked: Asked, full: str | None) -> Iterator[str]:
    """Yield why a row was left out by a selector that takes the largest of a score first."""
    score, own, lowest = asked.sorted
    takes = f"{name_chooser(asked.selection)} takes the largest {score} first"
    ours, theirs = _write_apart(own, lowest)
    if own < lowest:
        yield f"It was not chosen: {takes}, and its {ours} is below {theirs}, the lowest that was chosen."
        return
    if full is not None:
        yield f"It was not chosen: {full}."
    if own == lowest:
        yield (
            f"It was not chosen: {takes}, and of the rows that have {ours} like it, the lowest that was chosen, the "
            "first ones were taken."
        )
        return
    budget = asked.selection.get("budget") or {}
    if full is None and budget.get("kind") == "response_tokens":
        length = _count(asked.row["response_tokens"], "response token")
        yield f"It was not chosen: the budget had no room left for its {length}."
    elif full is None:
        yield f"It was not chosen by {name_chooser(asked.selection)}."
    yield f"Its {score} is {ours}, above {theirs}, the lowest that was chosen."


def _tell_no_score(asked: Asked) -> Iterator[str]:
    """Yield that rows have no score that they were sorted by, or none that is kept."""
    selector = asked.selection.get("selector")
    decision = (asked.selection.get("pilot") or {}).get("decision")
    if selector in CHANCE or decision == "chance":
        yield "Rows were drawn by chance, and have no score."
    elif selector in SELECTORS and name_score(asked.selection) is None and decision != "mixture":
        yield f"No artifact keeps by what {selector} sorts, so that how near it came is not known."


def _tell_full(asked: Asked) -> str | None:
    """Return in words that the row's topic had no room left for it before the choice ended; None where it had."""
    topic, (_, chosen, last) = asked.row["topic"], asked.topic
    if asked.bound is None or chosen < asked.bound[0]:
        return None
    (most, by), rows = asked.bound, asked.selection.get("chosen_rows") or 0
    if most == 0:
        return f"no row of its topic, {topic}, may be chosen, by {by}"
    if last == rows:
        return None
    return f"its topic, {topic}, was full from number {last + 1} on, with the {_count(most)} that {by} allows"


def _count(many: int, one: str = "row") -> str:
    return f"{many:,} {one}{'' if many == 1 else 's'}"


def _write_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers in as few digits as tell them apart.

    >>> _write_apart(0.123456, 0.123457), _write_apart(12345, 12345)
    (('0.123456', '0.123457'), ('12345', '12345'))
    """
    for digits in range(4, 17):
        written = _write(one, digits), _write(other, digits)
        if written[0] != written[1] or one == other:
            break
    return written


def _write(value: float, digits: int = 4) -> str:
    """Return a number in so many digits, a whole one in all of its own."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"


def _tell_entry(asked: Asked, share: float | None) -> str:
    asks = asked.selection.get("chosen_fraction")
    here = f"; this version's budget takes {asks:.0%}" if asks is not None else ""
    if (asked.selection.get("pilot") or {}).get("decision") in ("chance", "mixture"):
        here += ", and the pilot's word, which budgets are tried without, changed the choice"
    if share is None:
        topic = asked.row["topic"]
        cap = spread_caps(asked.made.get("caps") or {}, [topic]).get(topic)
        capped = cap is not None and cap < asked.topic[0]
        why = f": selection.caps allows {_count(cap)} of its topic, {topic}, whatever the budget" if capped else ""
        return f"No budget that was tried takes it{why}{here}."
    return f"A budget of {share:.0%} of the pool takes it, and of those that were tried no smaller one{here}."


def _tell_scores(asked: Asked) -> Iterator[str]:
    if "scores" not in asked.views:
        return
    own, _, lowest = asked.sorted or (None, None, None)
    for score, value, quantile, equal in sorted(asked.rows(QUANTILES), key=lambda one: one[0] != own):
        if score == own or score not in NOT_SCORES:
            among = f"higher than that of {_share(quantile)} of all other rows that have one"
            tie = f", and the same as that of {equal:,} of them" if equal else ""
            last = f". The lowest that was chosen is {_write(lowest)}" if score == own and asked.row["chosen"] else ""
            yield f"Its {score} is {_write(value)}: {among}{tie}{last}."


def _share(share: float) -> str:
    """Return a share in percent, 0% and 100% only where it is just that.

    >>> _share(0.999), _share(1.0), _share(0.001)
    ('over 99%', '100%', 'under 1%')
    """
    if 0.995 <= share < 1:
        return "over 99%"
    return "under 1%" if 0 < share <= 0.005 else f"{share:.0%}"


def _tell_partners(asked: Asked) -> Iterator[str]:
    if "pairs" not in asked.views:
        return
    ways = (("helps most", "demo_id", "target_id"), ("is helped most by", "target_id", "demo_id"))
    for said, self, other in ways:
        found = asked.rows(PARTNERS.format(self=self, other=other))
        if found:
            listed = "; ".join(f"{id} by {utility:.3f} ({_cut(prompt, 60)})" for id, utility, prompt in found)
            yield f"Shown in context, it {said} {listed}."


def _tell_alike(asked: Asked) -> Iterator[str]:
    found = asked.rows(ALIKE)
    if found:
        listed = ", ".join(f"{id}{' (chosen)' if chosen else ''}" for id, chosen in found)
        yield f"Rows of almost the same words: {listed}."


def _tell_topic(asked: Asked) -> Iterator[str]:
    topic, (pool, chosen, _), bound = asked.row["topic"], asked.topic, ""
    if asked.bound is not None:
        most = asked.bound[0]
        bound = f", of at most {most:,}, which is {'reached' if chosen >= most else 'not reached'}"
    yield f"Of its topic, {topic}, {chosen:,} of {pool:,} rows were chosen{bound}."


def _cut(text: str, longest: int = LONGEST) -> str:
    """Return a text in quotes, its blanks and breaks as one, and cut where it is long.

    >>> _cut("a\\n  b"), _cut("abcdef", 3)
    ('"a b"', '"abc…"')
    """
    words = " ".join(text.split())
    return f'"{words[:longest]}…"' if len(words) > longest else f'"{words}"'
