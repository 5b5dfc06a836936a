"""Rows of a project, found and told of: `tamis show`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from tasks.artifacts import tables
from tasks.artifacts.views import opened
from tasks.catalogue.derived import EACH, SAID, SAYS_ALL, split_words
from tasks.catalogue.questions import QuestionError
from tasks.catalogue.sources import Artifacts, find_artifacts

SHOWN = 3  # examples that an error suggests
BEST = 5  # demos and targets that `show` names

# What `show` tells of one example: the views that it needs, and the query.
PARTNERS = f"""
    SELECT u.version, e.id, u.utility, e.prompt, e.response FROM utility u JOIN {EACH} e
    ON e.version = u.version AND e.id = u.{{other}} WHERE u.{{self}} = $id AND u.{{other}} <> $id
    QUALIFY row_number() OVER (PARTITION BY u.version ORDER BY u.utility DESC, e.id) <= {BEST}
    ORDER BY u.version, u.utility DESC, e.id"""
FOUND = 20  # examples that are listed
NO_SUBSET = "(SELECT NULL AS version, NULL AS id, NULL::BOOLEAN AS chosen WHERE false)"
FIND = f"""
    WITH texts AS (SELECT version, id, any_value(topic) AS topic, any_value(prompt) AS prompt,
        any_value(response) AS response, any_value({SAID}) AS said FROM examples GROUP BY version, id),
    counted AS (SELECT *, list_sum(list_transform($words, lambda word:
        (len(said) - len(replace(said, word, ''))) / len(word))) / (20 + len(said)) AS often FROM texts
        WHERE {SAYS_ALL})
    SELECT count(*) OVER () AS found, string_agg(version, ' ' ORDER BY version) AS versions, id,
        any_value(topic) AS topic, coalesce(bool_or(chosen), $unknown) AS chosen,
        any_value(prompt) AS prompt, any_value(response) AS response
    FROM counted LEFT JOIN (SELECT version, id, chosen FROM {{subset}}) USING (version, id)
    GROUP BY id ORDER BY max(often) DESC, id LIMIT {FOUND}"""
FACTS = {
    "examples": ({"examples"}, "SELECT * EXCLUDE (id) FROM examples WHERE id = $id ORDER BY version, row"),
    "withdrawn": ({"withdrawn"}, "SELECT * EXCLUDE (id) FROM withdrawn WHERE id = $id ORDER BY version"),
    "scores": ({"scores"}, "SELECT version, score, value FROM scores WHERE id = $id ORDER BY version, score"),
    "gradients": ({"phi_data"}, "SELECT * EXCLUDE (id) FROM phi_data WHERE id = $id ORDER BY version"),
    "selection": (
        {"subset", "examples"},
        f"""SELECT s.* EXCLUDE (id, topic, response_tokens), e.prompt AS covering_prompt,
        e.response AS covering_response FROM subset s
        LEFT JOIN {EACH} e ON e.version = s.version AND e.id = s.covered_by WHERE s.id = $id
        ORDER BY s.version""",
    ),
    "distances": ({"distances"}, "SELECT * EXCLUDE (id) FROM distances WHERE id = $id ORDER BY version"),
    "best_demos": ({"utility", "examples"}, PARTNERS.format(self="target_id", other="demo_id")),
    "helps_most": ({"utility", "examples"}, PARTNERS.format(self="demo_id", other="target_id")),
    "evaluation": (
        {"evaluation"},
        """SELECT * EXCLUDE (id, topic, response_tokens) FROM evaluation WHERE id = $id
        ORDER BY version, arm, learner, seed, held_out_of""",
    ),
}


def show(root: Path, id: str) -> dict[str, Any]:
    """Return everything that is known about one example, by its id or how that begins.

    Raises:
        QuestionError: no example, or several, begin like this; with suggestions.
    """
    artifacts = find_artifacts(root)
    need(artifacts, "examples")
    sources = {**artifacts.views, **artifacts.derived}
    with opened(artifacts.views, derived=artifacts.derived) as connection:
        full = complete(connection, id)
        found = {"id": full} | ({"cannot_be_read": dict(artifacts.broken)} if artifacts.broken else {})
        for name, (needed, sql) in FACTS.items():
            if needed <= sources.keys():
                answer = connection.execute(sql, {"id": full})
                names = [column[0] for column in answer.description]
                found[name] = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
    return found


def find(root: Path, words: str) -> tuple[list[str], list[tuple], int]:
    """Return the examples that say all of some words, those first that say them most often for their length.

    Args:
        root: the project's folder.
        words: as of `split_words`.

    Returns:
        Names of columns; at most FOUND rows: versions, id, topic, whether it was chosen in any (None where no choice
        can be read), prompt, response; and how many there are.

    Raises:
        QuestionError: no word is given, or no example says all of them.
    """
    asked = split_words(words)
    if not asked:
        raise QuestionError('no word is given; `tamis show --find "some words"`')
    artifacts = find_artifacts(root, asked="")
    need(artifacts, "examples")
    subset, unknown = ("subset", False) if "subset" in artifacts.views else (NO_SUBSET, None)
    with opened(artifacts.views) as connection:
        answer = connection.execute(FIND.format(subset=subset), {"words": asked, "unknown": unknown})
        names, rows = [column[0] for column in answer.description[1:]], answer.fetchall()
    if not rows:
        raise QuestionError(f"no example says all of {', '.join(map(repr, asked))}; ask for fewer words")
    return names, [row for _, *row in rows], rows[0][0]


def show_version(root: Path, version: str) -> dict[str, Any] | None:
    """Return what is known of a version's rows, choice and arms, as its artifacts' JSON says it; None: there is none.

    What is not made yet is not among it.
    """
    reads = {
        "examples": ("examples.json", tables.read_json),
        "selection": ("selection.json", tables.read_json),
        "evaluation": ("metrics.json", tables.read_metrics),
    }
    found = {}
    for stage, (name, read) in reads.items():
        if record := read(Path(root) / f"data/{stage}/version={version}/{name}"):
            found[stage] = record
    return {"version": version, **found} if found else None


def need(artifacts: Artifacts, *names: str) -> None:
    """Raise ArtifactError where one of these views is missing or cannot be read."""
    for name in names:
        if name not in artifacts.views:
            missing = f"there is no {name} yet; make it: `tamis run`"
            raise tables.ArtifactError(artifacts.broken.get(name, missing))


def complete(connection: duckdb.DuckDBPyConnection, start: str) -> str:
    """Return the one id that begins like this.

    Raises:
        QuestionError: none, or several do; with suggestions.
    """
    like = "SELECT id, any_value(prompt) FROM examples WHERE {} GROUP BY id ORDER BY {}, id LIMIT 4"
    found = dict(
        connection.execute(like.format("starts_with(id, $start)", "id <> $start"), {"start": start}).fetchall()
    )
    if start in found or len(found) == 1:
        return next(iter(found))
    if found:
        raise QuestionError(f"several examples begin with {start!r}: {_list(found)}; give more digits")
    text, typed = "contains(lower(id || any_value(prompt)), lower($start))", "levenshtein(id[:length($start)], $start)"
    near = f"SELECT id, any_value(prompt) FROM examples GROUP BY id HAVING {text} OR {typed} <= length($start) // 4 "
    near += f"ORDER BY NOT {text}, {typed}, id LIMIT 4"
    found = dict(connection.execute(near, {"start": start}).fetchall())
    listed = f"the nearest: {_list(found)}" if found else "`tamis show WORDS --find` lists those that say some words"
    raise QuestionError(f"no example's id begins with {start!r}; {listed}")


def _list(found: Mapping[str, str]) -> str:
    return ", ".join(f"{id} ({prompt[:40]!r})" for id, prompt in list(found.items())[:SHOWN])


def flatten(found: Mapping[str, Any]) -> list[tuple[str, int | None, str, str | None]]:
    """Return what `show` found as rows: the part, which of its rows, the name, and the value as text.

    >>> flatten({"id": "a", "scores": [{"score": "phi", "value": 0.5}], "selection": {"rank": 1}})[1:]
    [('scores', 0, 'score', 'phi'), ('scores', 0, 'value', '0.5'), ('selection', None, 'rank', '1')]
    """
    made: list[tuple[str, int | None, str, str | None]] = []
    for part, value in found.items():
        rows = [(None, value)] if isinstance(value, Mapping) else list(enumerate(value)) if _is_table(value) else []
        made += [(part, place, name, _write(one)) for place, row in rows for name, one in row.items()]
        if not rows:
            made.append((part, None, "", _write(value)))
    return made


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _write(value: Any) -> str | None:
    """Return a value as text; what is not text or a number as JSON."""
    plain = isinstance(value, str | int | float) or value is None
    return (None if value is None else str(value)) if plain else json.dumps(value, default=str)
