"""The catalogue's views that are made of artifacts: turns, pairs, scores, changes."""

from collections.abc import Collection, Mapping
from typing import Any

from tasks.selection.selectors import SELECTORS

# Why a row is left out of use, by `unused_because`, in words that can follow "because" or a colon.
UNUSED = {
    "duplicate": "it repeats another row",
    "near duplicate": "another row has almost its words",
    "kept": "the version before has it, and only new rows are chosen from",
    "not sampled": "it was not drawn into the sample",
    "held out": "a held-out row asks the same",
    "near held out": "a held-out row has almost its words",
    "near validation": "a validation row has almost its words",
    "planted": "it is planted, and a row outside the pool asks the same",
    "vetoed": "it is vetoed",
}
# What an example says: the texts of all its turns, of system and tools too, with what is called and thought, in small
# letters; and whether every word of `$words` (`split_words`) is part of that, in a column `said`.
DETAILS = r"""regexp_replace(one.details, '\\+[nrt"]', ' ', 'g')"""
SAID = f"lower(array_to_string(list_transform(messages, lambda one: one.content || ' ' || {DETAILS}), ' '))"
SAYS_ALL = "list_bool_and(list_transform($words, lambda word: contains(said, word)))"
EACH = "(SELECT version, id, prompt, response FROM examples WHERE used OR duplicate_of IS NULL)"  # an id, once
TURNS = """
    SELECT version, id, row, place AS turn, one.role, one.content, one.learnt, one.details FROM (SELECT version, id,
        row, unnest(messages) AS one, generate_subscripts(messages, 1) - 1 AS place FROM examples)"""
PAIRS = """
    SELECT version, target_id, demo_id, utility, kernel, NULL::VARCHAR AS skipped_because FROM utility"""
SKIPPED = "SELECT version, target_id, demo_id, NULL, NULL, reason FROM skipped"
CHANGES = """
    SELECT version, CASE change WHEN 'new' THEN 'added' ELSE change END AS change, id, topic, split, prompt, response,
        earlier, NULL::VARCHAR AS edited_to
    FROM examples WHERE duplicate_of IS NULL AND split <> 'general'
    UNION ALL BY NAME
    SELECT version, CASE WHEN edited_to IS NULL THEN 'withdrawn' ELSE 'replaced' END AS change, id, topic, split,
        prompt, response, earlier, edited_to
    FROM withdrawn"""
# Every number that a row has, by its name: the artifact that it needs, and its query.
SCORES = {
    "selector": (
        "selector_scores",
        """SELECT s.version, s.id, coalesce(r.parameters ->> 'selector', 'selector') AS score, s.score AS value
        FROM selector_scores s LEFT JOIN runs r ON r.version = s.version AND r.artifact = 'scores'""",
    ),
    "difficulty": ("ifd", "SELECT version, id, 'difficulty', score FROM ifd"),  # of gate `ifd`, beside the selector's
    "agreement": ("agreement", "SELECT version, id, 'agreement', score FROM agreement"),
    "phi": ("phi_data", "SELECT version, id, 'phi', score FROM phi_data"),
    "phi_per_norm": ("phi_data", "SELECT version, id, 'phi_per_norm', per_norm FROM phi_data"),
    "gradient_norm": ("phi_data", "SELECT version, id, 'gradient_norm', norm FROM phi_data"),
    "distance": ("distances", "SELECT version, id, 'distance', distance FROM distances"),
    "log_likelihood": ("distances", "SELECT version, id, 'log_likelihood', log_likelihood FROM distances"),
    "mean_help": (
        "utility",
        "SELECT version, demo_id, 'mean_help', avg(utility) FROM utility WHERE demo_id <> target_id GROUP BY ALL",
    ),
    "gain": ("subset", "SELECT version, id, 'gain', gain FROM subset WHERE gain IS NOT NULL"),
    "cover": ("subset", "SELECT version, id, 'cover', cover FROM subset WHERE cover IS NOT NULL"),
    "gate": ("subset", "SELECT version, id, 'gate', gate_score FROM subset WHERE gate_score IS NOT NULL"),
    "response_tokens": (
        "examples",
        "SELECT version, id, 'response_tokens', response_tokens FROM examples WHERE used AND split = 'pool'",
    ),
}
# The topics of a choice that had no room before it ended, with the most rows of each that could be chosen (`most`).
FULL = """
    SELECT topic, most FROM {subset} JOIN {bounds} USING (topic) GROUP BY ALL
    HAVING count(*) > most AND count(*) FILTER (chosen) >= most
    AND (most = 0 OR max(rank) < (SELECT max(rank) FROM {subset}))"""
SORTED_BY = {"longest": "response_tokens", "dualsft": "phi", "probes": "mean_help"}  # what else selectors sort by
ASKS_RUNS = ("runs", "scores")  # views that read the artifacts' records, each of which takes a file


def split_words(words: str) -> list[str]:
    """Return the words that an example must say all of (`SAYS_ALL`): parted by blanks, in any case, parts of words too.

    >>> split_words(" Reset my  PASS")
    ['reset', 'my', 'pass']
    """
    return words.lower().split()


def tell_unused(because: str, split: str) -> str:
    """Return the SQL of the words why a row is not chosen from.

    Args:
        because, split: SQL of the row's `unused_because` and `split`.
    """
    known = " ".join(f"WHEN '{reason}' THEN '{words}'" for reason, words in UNUSED.items())
    of_split = f"'it is of the ' || replace({split}, '_', '-') || ' rows'"
    return f"CASE {because} {known} ELSE coalesce({because}, {of_split}) END"


def tell_not_taken(was: str = "''") -> str:
    """Return the SQL of the cases why a row of the pool was not taken, whatever its score.

    They read `covered_by`, `cover` and `response_tokens` of a choice, `most` of the row's topic, where that was full
    (`FULL`), and `room`, the answer tokens that the choice left of its budget (`find_room`).

    Args:
        was: SQL of the words before each.
    """
    room = "no room in the budget for its {} answer tokens"
    return f"""
        WHEN most = 0 THEN {was} || 'left out: no row of its topic may be chosen'
        WHEN covered_by IS NOT NULL THEN {was} || format('stood for by {{}}, by {{:.3g}}', covered_by, cover)
            || CASE WHEN most IS NOT NULL THEN format('; its topic full at {{}}', most)
            WHEN response_tokens > room THEN format('; {room}', response_tokens) ELSE '' END
        WHEN most IS NOT NULL THEN {was} || format('left out: its topic full at {{}}', most)
        WHEN response_tokens > room THEN {was} || format('left out: {room}', response_tokens)"""


def derive(sources: Collection[str]) -> Mapping[str, str]:
    """Return the queries of the views that can be made of these artifacts, by their names.

    Args:
        sources: names of the artifacts' views, where the selectors' scores are called `selector_scores`.
    """
    made = {}
    if "examples" in sources:
        made["turns"] = TURNS
    if "utility" in sources:
        made["pairs"] = f"{PAIRS} UNION ALL {SKIPPED}" if "skipped" in sources else PAIRS
    if {"examples", "withdrawn"} <= set(sources):
        made["changes"] = CHANGES
    scores = list_scores(sources)
    if scores:
        made["scores"] = "\nUNION ALL ".join(
            ["SELECT '' AS version, '' AS id, '' AS score, 0.0::DOUBLE AS value WHERE false", *scores]
        )
    return made


def list_scores(sources: Collection[str]) -> list[str]:
    """Return the queries of the scores that these artifacts have."""
    return [sql for needed, sql in SCORES.values() if needed in sources]


def list_bounds(record: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return the most rows of each topic that could be chosen, 0 too, and what says so; where nothing does, its size.

    Args:
        record: selection.json.

    >>> list_bounds({"budget": {"caps": {"ai": 9, "food": 0}}, "strata": {"ai": 2, "food": 0}})
    {'ai': (2, 'its share of the budget'), 'food': (0, 'selection.caps')}
    """
    caps, shares = (record.get("budget") or {}).get("caps") or {}, record.get("strata") or {}
    return {
        topic: (shares[topic], "its share of the budget") if shares.get(topic, cap) < cap else (cap, "selection.caps")
        for topic, cap in caps.items()
    }


def find_room(record: Mapping[str, Any]) -> int | None:
    """Return how many answer tokens a choice left of its budget; None: its budget is not of tokens.

    Args:
        record: selection.json.
    """
    budget = record.get("budget") or {}
    return budget["limit"] - budget["spent"] if budget.get("kind") == "response_tokens" and "spent" in budget else None


def name_score(record: Mapping[str, Any]) -> str | None:
    """Return the score of view `scores` whose largest values a version's choice took first; None: of none that is kept.

    Args:
        record: selection.json.

    >>> name_score({"selector": "longest"}), name_score({"selector": "ifd"}), name_score({"selector": "random"})
    ('response_tokens', 'ifd', None)
    """
    selector = record.get("selector")
    if selector not in SELECTORS or (record.get("pilot") or {}).get("decision") in ("chance", "mixture"):
        return None
    return selector if SELECTORS[selector].reads == "scores" else SORTED_BY.get(selector)


def count_first(record: Mapping[str, Any]) -> int:
    """Return how many rows a choice took before those of the largest scores: floors' and pinned ones, at most so many.

    >>> count_first({"budget": {"floors": {"ai": 2, "food": 0}}, "pins": {"chosen": 1}})
    3
    """
    floors = (record.get("budget") or {}).get("floors") or {}
    return sum(floors.values()) + (record.get("pins") or {}).get("chosen", 0)
