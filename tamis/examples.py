"""Rows become examples; identity, split and sample of examples are functions of text and seed, not of the rows' order.

Symbols: an example has an instruction (maybe none), a prompt and a response; its id is the digest of their normalised
text. Hashes, not random generators, decide what is held out and what is sampled, so that a row keeps its place when
others come and go.
"""

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ID_DIGITS = 32  # hexadecimal: 128 bits
PARTS = ("topic", "source", "instruction", "prompt", "response")
OPTIONAL = ("source", "instruction")
CHATS = (["user", "assistant"], ["system", "user", "assistant"])


class RowError(ValueError):
    """A row cannot become an example: the text is the reason, and what stands before its colon the kind of reason."""


@dataclass(frozen=True)
class Split:
    """What becomes of each row, in the rows' order."""

    ids: list[str]
    first: list[int | None]  # place of the first row with the same id; None at that row itself
    held_out: list[bool]
    used: list[bool]  # first of its id, and in the sample


def check_fields(fields: Mapping[str, str]) -> None:
    """Check that a field mapping says where prompt and response stand.

    Raises:
        ValueError: an unknown part; both forms, or neither.

    >>> check_fields({"messages": "conversation", "topic": "subject"})
    """
    unknown = sorted(set(fields) - {*PARTS, "messages"})
    if unknown:
        known = ", ".join((*PARTS, "messages"))
        raise ValueError(f"examples.fields maps unknown parts {unknown}; an example has {known}")
    plain = {"prompt", "response", "instruction"} & set(fields)
    if "messages" in fields and plain:
        raise ValueError(f"examples.fields maps messages and {sorted(plain)}; give messages, or prompt and response")
    if "messages" not in fields and not {"prompt", "response"} <= plain:
        raise ValueError("examples.fields must map prompt and response, or messages")


def parse_line(line: bytes) -> Any:
    """Return what a line of JSON holds.

    Raises:
        RowError: not UTF-8, or not JSON, with the column.

    >>> parse_line(b'{"a": 1}')
    {'a': 1}
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise RowError(f"invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"invalid JSON: {error}") from None


def parse_row(row: Any, fields: Mapping[str, str], stem: str) -> dict[str, str | None]:
    """Return the parts of an example that stand in a row, normalised: equal ids are equal texts.

    Args:
        row: what stands in the file.
        fields: part -> the row's field (`check_fields`).
        stem: the topic where none is mapped.

    Returns:
        Text of topic, source, instruction, prompt and response; None for an optional part that is absent or empty.

    Raises:
        RowError: not an object; a field that is missing, empty, no text or no Unicode; a chat of several exchanges.

    >>> parse_row({"q": "Hi", "a": "Hello"}, {"prompt": "q", "response": "a"}, "greetings")["topic"]
    'greetings'
    """
    if not isinstance(row, Mapping):
        raise RowError(f"not an object: {type(row).__name__}")
    found = {part: row.get(name) for part, name in fields.items()}
    absent = [part for part in found if found[part] is None and part not in OPTIONAL]
    if absent:
        raise RowError(f"missing field {fields[absent[0]]!r}: nothing for the {absent[0]}")
    if "messages" in found:
        found |= _read_chat(found.pop("messages"))
    parts = {"topic": stem, "source": None, "instruction": None, **found}
    return {part: _check_text(part, parts[part]) for part in PARTS}


def _read_chat(chat: Any) -> dict[str, Any]:
    """Return instruction, prompt and response of one exchange: maybe a system message, a user's, an assistant's."""
    if not isinstance(chat, Sequence) or not all(isinstance(turn, Mapping) for turn in chat):
        raise RowError(f"not one exchange: messages is {type(chat).__name__}, not a list of role and content")
    roles = [turn.get("role") for turn in chat]
    if roles not in CHATS:
        raise RowError(f"not one exchange: the roles are {roles[:6]}, not (system,) user, assistant")
    contents = [turn.get("content") for turn in chat]
    return dict(zip(("response", "prompt", "instruction"), reversed(contents), strict=False))


def _check_text(part: str, text: Any) -> str | None:
    if text is None and part in OPTIONAL:
        return None
    if not isinstance(text, str):
        raise RowError(f"not text: the {part} is {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(f"not UTF-8: the {part} holds bytes or escapes that are no Unicode") from None
    if text.strip():
        return normalise(text)
    if part in OPTIONAL:
        return None
    raise RowError(f"empty {part}")


def find_fault(lengths: tuple[int, int], text: str, room: int, control: Sequence[str]) -> str | None:
    """Return why a model cannot use an example, if so.

    Args:
        lengths: tokens of prompt and response.
        text: both.
        room: tokens that the context has for them.
        control: texts that the tokenizer turns into control tokens.

    >>> find_fault((3, 4), "a <|end|> b", 9, ["<|end|>"])
    "holds a control token: '<|end|>' would end or open a turn inside the text"
    """
    found = next((token for token in control if token in text), None)
    if found is not None:
        return f"holds a control token: {found!r} would end or open a turn inside the text"
    if sum(lengths) > room:
        return (
            f"longer than the context: {lengths[0]} + {lengths[1]} tokens of prompt and response, {room} fit "
            "(models.max_tokens less the template's)"
        )
    return None


def normalise(text: str) -> str:
    """Return the text in Unicode form NFC, with line feeds as line ends and no white space at either end.

    What means the same to every program becomes equal; case, "2²" and the indentation of code are kept.

    >>> normalise("  if x:\\r\\n    y ")
    'if x:\\n    y'
    """
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()


def fold(prompt: str) -> str:
    """Return what prompts are compared by: Unicode form NFKC, case folded, every run of white space as one space.

    Prompts that only look different ("Hi" and " hi") must not stand on both sides of the split.

    >>> fold("  Ｈow are\\u00a0\\n you?")
    'how are you?'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold())
    return " ".join(folded.split())


def identify(prompt: str, response: str, instruction: str | None = None) -> str:
    """Return the id of an example: the first 32 hexadecimal digits of a sha256.

    `id = sha256(JSON of [normalise(instruction), normalise(prompt), normalise(response)])`, UTF-8; no instruction is
    the empty text. As JSON, no two triples run together.

    >>> identify("Hi", "Hello") == identify(" Hi ", "Hello\\n")
    True
    >>> identify("a", "b c") == identify("a b", "c")
    False
    """
    text = json.dumps([normalise(part) for part in (instruction or "", prompt, response)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def is_held_out(prompt: str, *, seed: int, held_out_in: int) -> bool:
    """Return whether a prompt belongs to the held-out rows.

    `sha256(seed + fold(prompt)) mod held_out_in == 0`: the seed's decimal digits followed by the prompt, UTF-8,
    the digest read as one big-endian integer. About one prompt in `held_out_in` is held out, whatever its topic; all
    rows of a prompt fall on one side, in every data version.

    Args:
        prompt: without the instruction.
        seed: any integer.
        held_out_in: 1 holds out everything.

    Raises:
        ValueError: `held_out_in` is below 1.

    >>> [is_held_out(prompt, seed=0, held_out_in=5) for prompt in ("Hi", "What is history?", "What is  history?")]
    [False, True, True]
    """
    if held_out_in < 1:
        raise ValueError(f"held_out_in is {held_out_in}; one prompt in so many is held out, so give 1 or more")
    digest = hashlib.sha256(f"{seed}{fold(prompt)}".encode()).digest()
    return int.from_bytes(digest, "big") % held_out_in == 0


def link_duplicates(ids: Sequence[str]) -> list[int | None]:
    """Return for each id the place of its first occurrence, None at that occurrence itself.

    >>> link_duplicates(["a", "b", "a", "a"])
    [None, None, 0, 0]
    """
    first: dict[str, int] = {}
    links = [first.setdefault(each, place) for place, each in enumerate(ids)]
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


def split_rows(
    columns: Mapping[str, Sequence[str | None]],
    *,
    held_out_in: int,
    seed: int,
    pool_rows: int | None,
    held_out_rows: int | None,
) -> Split:
    """Give each row its id, its first duplicate, its side, and whether later stages use it.

    Args:
        columns: topic, instruction, prompt and response of every row.
        held_out_in: one prompt in so many is held out (`is_held_out`).
        seed: of split and sample.
        pool_rows: distinct examples sampled from the pool; None for all.
        held_out_rows: likewise from the held-out side.
    """
    prompts, topics = columns["prompt"], columns["topic"]
    ids = [identify(*row) for row in zip(prompts, columns["response"], columns["instruction"], strict=True)]
    first = link_duplicates(ids)
    held_out = [is_held_out(prompt, seed=seed, held_out_in=held_out_in) for prompt in prompts]
    chosen: set[str] = set()
    for side, rows in ((False, pool_rows), (True, held_out_rows)):
        ours = {ids[k]: topics[k] for k in range(len(ids)) if first[k] is None and held_out[k] is side}
        chosen |= sample(ours, rows, seed)
    return Split(ids, first, held_out, [link is None and each in chosen for each, link in zip(ids, first, strict=True)])


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
