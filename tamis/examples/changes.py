"""What a version changes against the one before: rows that are kept, edited, new or withdrawn, and what was learnt."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Before:
    """The distinct examples of the version before."""

    ids: Sequence[str]
    questions: Sequence[str]  # what says that an example is the same one with other answers
    offered: Sequence[bool]  # stood in a used pool, of this version or an earlier one
    learnt: Sequence[bool]  # was chosen, likewise
    gone: Sequence[str] = ()  # ids that versions before it chose, and that it has no more


def label_changes(ids: Sequence[str], questions: Sequence[str], before: Before) -> list[str]:
    """Return for each row whether it is `kept`, `edited` or `new` against the version before.

    kept: its id stood there; edited: what it is asked did, with other answers only.

    >>> label_changes(["1", "2", "3"], ["a", "b", "c"], Before(["1", "9"], ["a", "b"], [], []))
    ['kept', 'edited', 'new']
    """
    known, asked = set(before.ids), set(before.questions)
    return [
        "kept" if each in known else "edited" if question in asked else "new"
        for each, question in zip(ids, questions, strict=True)
    ]


def tell_earlier(ids: Sequence[str], before: Before) -> list[str | None]:
    """Return for each row `learnt` where an earlier version chose it, `offered` where one could have, else None.

    >>> tell_earlier(["1", "2", "3", "4"], Before(["1", "2"], [], [True, True], [True, False], ["4"]))
    ['learnt', 'offered', None, 'learnt']
    """
    learnt = {*before.gone, *(each for each, flag in zip(before.ids, before.learnt, strict=True) if flag)}
    offered = {each for each, flag in zip(before.ids, before.offered, strict=True) if flag}
    return ["learnt" if each in learnt else "offered" if each in offered else None for each in ids]


def share_earlier(first: Sequence[int | None], earlier: Sequence[str | None]) -> list[str | None]:
    """Return what `tell_earlier` found, where the first row of a text is told what its repetitions are told as well.

    Repetitions may have ids of their own: their texts differ in blanks.

    >>> share_earlier([None, None, 0], ["offered", None, "learnt"])
    ['learnt', None, 'learnt']
    """
    told = list(earlier)
    for link, each in zip(first, earlier, strict=True):
        if link is not None and (each == "learnt" or (each == "offered" and told[link] is None)):
            told[link] = each
    return told


def find_withdrawn(ids: Sequence[str], questions: Sequence[str], before: Before) -> list[tuple[int, str | None]]:
    """Return the places of examples of the version before that are here no more, each with the id in its place, if any.

    An example that was edited has in its place the first example with its question that did not stand there before.

    >>> find_withdrawn(["1", "2"], ["a", "b"], Before(["1", "8", "9"], ["a", "b", "c"], [], []))
    [(1, '2'), (2, None)]
    """
    here, known, instead = set(ids), set(before.ids), {}
    for each, question in zip(ids, questions, strict=True):
        if each not in known:
            instead.setdefault(question, each)
    gone = [place for place, each in enumerate(before.ids) if each not in here]
    return [(place, instead.get(before.questions[place])) for place in gone]
