"""Sides of examples: pool, target task, validation, held-out and general rows; and which of them are used.

Functions of text and seed, not of the rows' order: hashes, not random generators, decide what is held out and what is
sampled, so that a row keeps its place when others come and go. Symbols: a row's key is what says on which side it may
stand, equal for rows that ask the same (`tamis.examples.conversations.split_key`, shortened by `shorten`).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

POOL, TARGET, VALIDATION, HELD_OUT, GENERAL = "pool", "target", "validation", "held_out", "general"
GROUND_SETS = ("new", "all")
LONGEST = 100  # characters of a key that are kept
SHOWN = 60  # of them in an error


class SplitError(ValueError):
    """Rows cannot be divided as asked."""


@dataclass(frozen=True)
class Rows:
    """What is known of each distinct or repeated row, in the rows' order."""

    ids: Sequence[str]
    first: Sequence[int | None]  # place of the first row with the same text; None at that row itself
    sides: Sequence[str]  # pool | target | validation | held_out | general
    topics: Sequence[str]
    changes: Sequence[str]  # kept | edited | new


def is_held_out(key: str, *, seed: int, held_out_every: int) -> bool:
    """Return whether rows with a key belong to the held-out ones.

    `sha256(seed + key) mod held_out_every == 0`: the seed's decimal digits followed by the whole key, UTF-8, the digest
    read as one big-endian integer. About one key in `held_out_every` is held out, whatever its topic; all rows of a key
    fall on one side, in every data version.

    Args:
        key: the folded text of a conversation's first question (`tamis.examples.conversations.split_key`).
        seed: any integer.
        held_out_every: 1 holds out everything.

    Raises:
        ValueError: `held_out_every` is below 1.

    >>> [is_held_out(key, seed=0, held_out_every=5) for key in ("hi", "what is history?")]
    [False, True]
    """
    if held_out_every < 1:
        raise ValueError(f"held_out_every is {held_out_every}; one prompt in so many is held out, so give 1 or more")
    return int.from_bytes(_rank(key, seed), "big") % held_out_every == 0


def validates(key: str, *, seed: int, validation_every: int | None) -> bool:
    """Return whether rows with a key are drawn as validation rows; None draws nothing.

    As `is_held_out`, of `sha256("validation" + seed + key)`: that a key is drawn says nothing of whether it is held
    out, so about one key in `validation_every` of those that are not held out is left to validate.

    Args:
        key: as there.
        seed: any integer.
        validation_every: 1 draws everything.

    Raises:
        ValueError: `validation_every` is below 1.

    >>> [validates(key, seed=0, validation_every=3) for key in ("hi", "what is history?", "what is food?")]
    [False, True, False]
    """
    if validation_every is None:
        return False
    if validation_every < 1:
        raise ValueError(f"validation_every is {validation_every}; one prompt in so many validates, so give 1 or more")
    digest = hashlib.sha256(f"validation{seed}{key}".encode()).digest()
    return int.from_bytes(digest, "big") % validation_every == 0


def shorten(key: str) -> str:
    """Return a key in at most 100 characters, different for different keys: its beginning and, if long, a digest.

    >>> shorten("what is history?"), len(shorten("a" * 1000))
    ('what is history?', 100)
    """
    if len(key) <= LONGEST:
        return key
    return f"{key[: LONGEST - 33]} {hashlib.sha256(key.encode()).hexdigest()[:32]}"


def link_duplicates(names: Sequence[str]) -> list[int | None]:
    """Return for each name the place of its first occurrence, None at that occurrence itself.

    >>> link_duplicates(["a", "b", "a", "a"])
    [None, None, 0, 0]
    """
    first: dict[str, int] = {}
    links = [first.setdefault(each, place) for place, each in enumerate(names)]
    return [None if link == place else link for place, link in enumerate(links)]


def allocate(sizes: Mapping[str, int], rows: int) -> dict[str, int]:
    """Divide rows among topics in proportion to their sizes, by largest remainders.

    Topic t gets `floor(q_t)` or `floor(q_t) + 1` rows, `q_t = rows * size_t / sum of sizes`; the left-over rows go to
    the largest fractions, equal ones by name. No topic gets more than its size.

    Args:
        sizes: topic -> examples.
        rows: at least 0; at or above the sum of sizes everything is given.

    Raises:
        ValueError: `rows` is negative.

    >>> allocate({"food": 6, "ai": 3, "money": 1}, 5)
    {'ai': 2, 'food': 3, 'money': 0}
    """
    if rows < 0:
        raise ValueError(f"{rows} rows cannot be sampled; give 0 or more, or null for all")
    total = sum(sizes.values())
    if rows >= total:
        return {topic: sizes[topic] for topic in sorted(sizes)}
    parts = {topic: divmod(rows * sizes[topic], total) for topic in sorted(sizes)}
    left_over = rows - sum(whole for whole, _ in parts.values())
    favoured = set(sorted(parts, key=lambda topic: (-parts[topic][1], topic))[:left_over])
    return {topic: whole + (topic in favoured) for topic, (whole, _) in parts.items()}


def sample(topics: Mapping[str, str], rows: int | None, seed: int) -> set[str]:
    """Choose examples, stratified by topic.

    Each topic gives its share (`allocate`): those of its examples with the smallest `sha256(seed + id)`. The order of
    rows plays no part, and the choice from a topic only grows with its share.

    Args:
        topics: id -> topic of every distinct example.
        rows: how many to choose; None chooses all.
        seed: any integer.

    Returns:
        The chosen ids, `min(rows, len(topics))` of them.

    >>> len(sample({"a": "ai", "b": "ai", "c": "food", "d": "food"}, 2, seed=0) & {"a", "b"})
    1
    """
    if rows is None or rows >= len(topics):
        return set(topics)
    members = defaultdict(list)
    for each, topic in topics.items():
        members[topic].append(each)
    shares = allocate({topic: len(ids) for topic, ids in members.items()}, rows)
    ranked = {topic: sorted(ids, key=lambda each: _rank(each, seed)) for topic, ids in members.items()}
    return {each for topic, ids in ranked.items() for each in ids[: shares[topic]]}


def assign_sides(
    keys: Sequence[str], given: Sequence[str | None], drawn: Sequence[bool], measured: Iterable[str] = ()
) -> list[str]:
    """Return the side of each row: the one it was given, else `held_out` or `pool` by its key.

    Args:
        keys: of every row.
        given: `target`, `held_out` or `general` of rows from files that are named so, None of the others.
        drawn: whether a row's key is held out (`is_held_out`).
        measured: keys that the version before is measured on, which are measured on again.

    Raises:
        SplitError: a target row has the key of a held-out row.

    >>> assign_sides(["hi", "what is history?", "2 + 2"], ["target", None, "general"], [False, True, False])
    ['target', 'held_out', 'general']
    """
    sides = [side or (HELD_OUT if held_out else POOL) for side, held_out in zip(given, drawn, strict=True)]
    asked = {*measured, *(key for key, side in zip(keys, sides, strict=True) if side == HELD_OUT)}
    places = [place for place, side in enumerate(sides) if side == TARGET and keys[place] in asked]
    if places:
        raise SplitError(
            f"{len(places)} of {sides.count(TARGET)} target rows have the prompt of a held-out row, first rows "
            f"{places[:3]} ({keys[places[0]][:SHOWN]!r}): what is measured on must not steer the choice; take them "
            "out of the target set (examples.target), or choose another examples.seed"
        )
    return sides


def refuse_shared(keys: Sequence[str], sides: Sequence[str], taught: Iterable[str] = ()) -> None:
    """Check that no general row has the key of a row on another side, or of one that an earlier version chose.

    What tells of forgetting must be neither trained on nor steer the choice, and is measured on once.

    Args:
        keys: of every row.
        sides: of every row (`assign_sides`, `set_apart`).
        taught: keys of examples that earlier versions chose.

    Raises:
        SplitError: how many general rows do, with rows of which sides, and the first.

    >>> refuse_shared(["hi", "bye"], ["pool", "general"])
    """
    where = dict.fromkeys(taught, "earlier subset")
    where |= {key: side for key, side in zip(keys, sides, strict=True) if side != GENERAL}
    general = [place for place, side in enumerate(sides) if side == GENERAL]
    places = [place for place in general if keys[place] in where]
    if places:
        counts = Counter(where[keys[place]] for place in places)
        found = ", ".join(f"{count} of the {side}" for side, count in sorted(counts.items()))
        raise SplitError(
            f"{len(places)} of {len(general)} general rows have the prompt of another row ({found}), first rows "
            f"{places[:3]} ({keys[places[0]][:SHOWN]!r}): what must not be forgotten is not trained on, nor measured "
            "twice; take them out of the general set (examples.retention_set), or the others out of the raw files"
        )


def refuse_taught(keys: Sequence[str], sides: Sequence[str], taught: Iterable[str]) -> None:
    """Check that no held-out row has the key of an example that an earlier version chose: models know the answer.

    Raises:
        SplitError: how many held-out rows do, and the first.
    """
    known = set(taught)
    held_out = [place for place, side in enumerate(sides) if side == HELD_OUT]
    places = [place for place in held_out if keys[place] in known]
    if places:
        raise SplitError(
            f"{len(places)} of {len(held_out)} held-out rows have the prompt of a row that an earlier version chose, "
            f"first rows {places[:3]} ({keys[places[0]][:SHOWN]!r}): what is measured on was not trained on; take them "
            "out of the held-out rows (examples.held_out), or leave examples.seed and held_out_every as they were"
        )


def find_asked_elsewhere(keys: Sequence[str], sides: Sequence[str], measured: Iterable[str] = ()) -> list[bool]:
    """Return for each row of the pool whether its key is that of a held-out row, which must not be trained on.

    Args:
        keys: of every row.
        sides: of every row (`assign_sides`).
        measured: keys that the version before is measured on, which are measured on again.

    >>> find_asked_elsewhere(["hi", "hi", "bye"], ["held_out", "pool", "pool"], ["bye"])
    [False, True, True]
    """
    asked = {*measured, *(key for key, side in zip(keys, sides, strict=True) if side == HELD_OUT)}
    return [side == POOL and key in asked for key, side in zip(keys, sides, strict=True)]


def set_validation_apart(
    keys: Sequence[str],
    sides: Sequence[str],
    drawn: Sequence[bool],
    *,
    barred: Iterable[str] = (),
    before: Iterable[str] = (),
) -> list[str]:
    """Return the sides with all rows of some prompts moved from the pool to the validation rows.

    Moved are the prompts that are drawn and those that validated before. Never moved are prompts that are barred, and
    those of a row on another side, so that a prompt validates as a whole or not at all.

    Args:
        keys: of every row.
        sides: of every row (`assign_sides`).
        drawn: whether a row's key is drawn (`validates`).
        barred: keys that the version before is measured on, or that an earlier version chose.
        before: keys of the validation rows of the version before, which stay ones.

    >>> set_validation_apart(["hi", "hi", "bye", "so"], ["pool"] * 4, [True, True, True, False], barred=["bye"])
    ['validation', 'validation', 'pool', 'pool']
    """
    elsewhere = {key for key, side in zip(keys, sides, strict=True) if side != POOL}
    asked = {*before, *(key for key, each in zip(keys, drawn, strict=True) if each)}
    moved = asked - elsewhere - set(barred)
    return [VALIDATION if key in moved else side for key, side in zip(keys, sides, strict=True)]


def set_apart(
    rows: Rows, topic: str, count: int | None, *, seed: int, barred: Sequence[bool] | None = None
) -> list[str]:
    """Return the sides with examples of a topic moved from the pool to the target task.

    Taken are the `count` distinct examples with the smallest `sha256(seed + id)`, with all their repetitions.

    Args:
        rows: of which those in the pool are looked at.
        topic: of the target task.
        count: how many examples; None: all of them in the pool.
        seed: any integer.
        barred: rows that must not steer the choice, as those that ask what a held-out row asks; None: there are none.

    Raises:
        SplitError: the pool has no example of this topic, or fewer than asked.
    """
    places = range(len(rows.ids))
    names = [rows.ids[k if link is None else link] for k, link in enumerate(rows.first)]  # of the text, not the row
    free = [rows.sides[k] == POOL and not (barred is not None and barred[k]) for k in places]
    found = {names[k] for k in places if rows.topics[k] == topic and free[k]}
    if not found or (count or 0) > len(found):
        known = sorted({rows.topics[k] for k in places if rows.sides[k] == POOL})
        raise SplitError(
            f"examples.target asks for {count or 'all'} rows of topic {topic!r} and the pool has {len(found)} distinct "
            f"ones outside the held-out rows; its topics are {', '.join(known[:20])}"
        )
    taken = set(sorted(found, key=lambda each: _rank(each, seed))[: count or len(found)])
    return [TARGET if names[k] in taken and free[k] else rows.sides[k] for k in places]


def mark_used(
    rows: Rows,
    *,
    ground_set: str,
    deduplicate: bool,
    seed: int,
    pool_rows: int | None,
    held_out_rows: int | None,
    barred: Sequence[str | None] | None = None,
    clusters: Sequence[int] | None = None,
) -> list[str | None]:
    """Return for each row why later stages do not use it, None where they do.

    Repetitions are not used, but for those of the pool where `deduplicate` is false, nor are barred rows, nor, with
    ground set `new`, rows of the pool `kept` from the version before; of what is left of a cluster of the pool's
    near-duplicates the first row is; then `pool_rows` of the pool and `held_out_rows` are sampled. All rows of other
    sides are used.

    Args:
        ground_set: new | all.
        deduplicate: false leaves repetitions in the pool in use, each a row of its own.
        barred: why some rows must not be used; None: there are none.
        clusters: the cluster of near-duplicates of each row, of which one is to be used; None: all may be.

    Returns:
        `duplicate`, what bars it, `kept`, `near duplicate`, `not sampled` or None.
    """
    if ground_set not in GROUND_SETS:
        raise SplitError(f"examples.ground_set is {ground_set!r}; it must be one of {', '.join(GROUND_SETS)}")
    places, seen = range(len(rows.ids)), set()
    names = rows.ids if deduplicate else number_repetitions(rows.ids)
    because: list[str | None] = [
        "duplicate" if link is not None and (deduplicate or side != POOL) else None
        for link, side in zip(rows.first, rows.sides, strict=True)
    ]
    for k in places:
        if barred is not None and barred[k]:
            because[k] = barred[k]
        if because[k] is None and ground_set == "new" and rows.sides[k] == POOL and rows.changes[k] == "kept":
            because[k] = "kept"
        if because[k] is None and clusters is not None and rows.sides[k] == POOL:
            because[k] = "near duplicate" if clusters[k] in seen else None
            seen.add(clusters[k])
    for side, count in ((POOL, pool_rows), (HELD_OUT, held_out_rows)):
        ours = {names[k]: rows.topics[k] for k in places if because[k] is None and rows.sides[k] == side}
        chosen = sample(ours, count, seed)
        for k in places:
            if because[k] is None and rows.sides[k] == side and names[k] not in chosen:
                because[k] = "not sampled"
    return because


def number_repetitions(ids: Sequence[str]) -> list[str]:
    """Return ids of which each is there once: a repetition's id is that of its text, a dash, and its number.

    >>> number_repetitions(["a", "b", "a"])
    ['a', 'b', 'a-1']
    """
    times: dict[str, int] = defaultdict(int)
    numbered = []
    for each in ids:
        numbered.append(f"{each}-{times[each]}" if times[each] else each)
        times[each] += 1
    return numbered


def share_held_out(examples: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Return for each topic the fraction of its examples that are held out, in [0, 1].

    Args:
        examples: topic, and whether held out, of every distinct example.

    >>> share_held_out([("ai", True), ("ai", False), ("food", False)])
    {'ai': 0.5, 'food': 0.0}
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for topic, held_out in examples:
        counts[topic][0] += held_out
        counts[topic][1] += 1
    return {topic: held_out / total for topic, (held_out, total) in sorted(counts.items())}


def _rank(each: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}{each}".encode()).digest()
