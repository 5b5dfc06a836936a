"""Task metrics: whether an answer is right, by the number in its row's response or by the row's tests."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from tamis.evaluation.answers import find_code, find_number
from tasks.evaluation import sandbox
from tasks.evaluation.inputs import EvaluationError, HeldOut

Expected = Fraction | str | None  # a number, tests, or nothing to judge by
READ = {  # task metric -> what a row is judged by, what that is called, and a way out where it lacks
    "exact_match": (lambda row: find_number(row["response"]), "number in their response", ""),
    "pass_at_1": (lambda row: row["tests"], "tests", "map examples.fields.tests to the field that holds them, or "),
}


def read_expected(held_out: HeldOut, metric: str) -> list[Expected]:
    """Return what tells whether an answer to each row is right; None where nothing does.

    Rows of the version before and general ones may be of another kind, whose answers are then not judged.

    Raises:
        EvaluationError: this version has held-out rows that the metric cannot judge.
        SandboxError: the system refuses to run code apart.
    """
    if metric == "none":
        return [None] * len(held_out.rows)
    refuse_unjudged([held_out.rows[place] for place in held_out.of[held_out.version]], metric)
    return [READ[metric][0](row) for row in held_out.rows]


def refuse_unjudged(rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Refuse held-out rows of a version that a task metric cannot judge: before anything is trained, too.

    Raises:
        EvaluationError: some lack what answers are judged by.
        SandboxError: the system refuses to run code apart.
    """
    if metric == "none":
        return
    read, what, way_out = READ[metric]
    lacking = [row["row"] for row in rows if read(row) is None]
    if lacking:
        raise EvaluationError(
            f"{len(lacking)} of {len(rows)} held-out rows have no {what}, by which {metric} judges answers, first rows "
            f"{lacking[:3]}; {way_out}set evaluation.task_metric: none"
        )
    if metric == "pass_at_1":
        sandbox.refuse_open()


def judge(
    said: Sequence[Sequence[str | None]], expected: Sequence[Expected]
) -> dict[tuple[str, Expected], bool | None]:
    """Return whether each answer is right for what is expected of it: the same number, or code that passes the tests.

    Args:
        said: of each run, its answers to the rows, maybe to the first of them only; None: not answered.
        expected: of each row.

    Returns:
        (answer, expected) -> right or not; None where nothing is expected. Equal code is run once.

    Raises:
        SandboxError: the system refuses to run code apart.
    """
    pairs = {pair for texts in said for pair in zip(texts, expected, strict=False) if pair[0] is not None}
    programs = sorted({(find_code(text), tests) for text, tests in pairs if isinstance(tests, str)})
    passed = dict(zip(programs, sandbox.run_tests(programs), strict=True))
    found: dict[tuple[str, Expected], bool | None] = dict.fromkeys(pairs)
    for text, wanted in pairs:
        if isinstance(wanted, str):
            found[text, wanted] = passed[find_code(text), wanted]
        elif wanted is not None:
            found[text, wanted] = find_number(text) == wanted
    return found
