"""A question for each view of the catalogue, with its query: for the page of the docs and the desk."""

from typing import NamedTuple


class Example(NamedTuple):
    """A question that people ask, in words and in SQL."""

    view: str
    question: str
    sql: str


EXAMPLES = (
    Example(
        "examples",
        "How many rows does each version have, and what becomes of them?",
        """SELECT version, split, used, coalesce(unused_because, '') AS why, count(*) AS rows
FROM examples GROUP BY ALL ORDER BY ALL""",
    ),
    Example(
        "turns",
        "Which conversations have the longest turns that are learnt?",
        """SELECT version, id, turn, length(content) AS characters FROM turns WHERE learnt
ORDER BY characters DESC, version, id, turn LIMIT 5""",
    ),
    Example(
        "rejects",
        "Why were raw rows left out?",
        """SELECT version, split_part(reason, ':', 1) AS kind, count(*) AS rows, min(file) AS first_file
FROM rejects GROUP BY ALL ORDER BY rows DESC, version, kind LIMIT 10""",
    ),
    Example(
        "changes",
        "What did a version keep, edit, add and withdraw?",
        "SELECT version, change, count(*) AS rows FROM changes GROUP BY ALL ORDER BY ALL",
    ),
    Example(
        "pairs",
        "Which rows help others most, on average?",
        """SELECT version, demo_id, avg(utility) AS help, count(utility) AS targets FROM pairs
WHERE demo_id <> target_id GROUP BY ALL HAVING targets > 0 ORDER BY help DESC, version, demo_id LIMIT 5""",
    ),
    Example(
        "scores",
        "Where do a row's scores stand among those of its version, from 0 to 1?",
        """SELECT version, id, score, value,
    percent_rank() OVER (PARTITION BY version, score ORDER BY value) AS quantile
FROM scores ORDER BY version, id, score LIMIT 10""",
    ),
    Example(
        "subset",
        "Which topics do the chosen rows come from, beside the pool?",
        """SELECT version, topic, count(*) AS pool, count(*) FILTER (chosen) AS chosen,
    round(count(*) FILTER (chosen) / count(*), 3) AS share
FROM subset GROUP BY ALL ORDER BY version, share DESC, topic""",
    ),
    Example(
        "mask",
        "Which rows of which tensors hold most of a mask?",
        'SELECT version, tensor, "row", chosen FROM mask ORDER BY chosen DESC, version, tensor, "row" LIMIT 5',
    ),
    Example(
        "tensors",
        "How dense is a mask in each layer and module?",
        """SELECT version, layer, module, sum(chosen) / sum(entries) AS density FROM tensors
GROUP BY ALL ORDER BY density DESC, version, layer, module LIMIT 10""",
    ),
    Example(
        "evaluation",
        "What loss has each model on held-out rows?",
        """SELECT version, arm, learner, held_out_of, count(DISTINCT seed) AS seeds, round(avg(loss), 4) AS loss
FROM evaluation GROUP BY ALL ORDER BY version, held_out_of, learner, loss""",
    ),
    Example(
        "runs",
        "What was each artifact made with, when, and in what time?",
        """SELECT version, stage, artifact, "rows", seed, created, seconds, parameters FROM runs
ORDER BY version, stage, artifact LIMIT 10""",
    ),
    Example(
        "approvals",
        "Who approved which version, and when?",
        'SELECT version, "by", "when", note, despite FROM approvals ORDER BY "when" DESC',
    ),
    Example(
        "decisions",
        "Which rows did people veto or pin, and why?",
        'SELECT version, kind, id, because, "by" FROM decisions ORDER BY version, kind, id',
    ),
)
