"""Which answers are right: the same number, or code that passes its tests."""

from fractions import Fraction

import pytest
from worlds.toy_corpus import reword, row

from tamis.language.encoding import join_rows
from tasks.evaluation import sandbox, task_metrics
from tasks.evaluation.inputs import EvaluationError, HeldOut, Prompts
from tasks.evaluation.task_metrics import judge, read_expected

TESTS = "assert double(2) == 4"


def held_out(*rows: dict) -> HeldOut:
    """This version holds out two rows, the version before the third."""
    return HeldOut(list(rows), [], Prompts(join_rows([], []), []), "v1", "v0", {"v1": [0, 1], "v0": [2]})


def rows_of(*responses: str, tests: str | None = None) -> list[dict]:
    return [reword(row(place, "held_out"), response=text) | {"tests": tests} for place, text in enumerate(responses)]


def test_numbers_are_expected_where_the_metric_is_exact_match():
    rows = rows_of("it is 2 #### 3,000", "0.5 apples", "none")
    assert read_expected(held_out(*rows), "exact_match") == [3000, Fraction(1, 2), None]


def test_nothing_is_expected_without_a_metric():
    assert read_expected(held_out(*rows_of("1", "2", "3", tests=TESTS)), "none") == [None] * 3


def test_tests_are_expected_where_the_metric_is_pass_at_1(monkeypatch):
    monkeypatch.setattr(sandbox, "refuse_open", lambda: None)
    rows = rows_of("x", "y", "z", tests=TESTS)
    assert read_expected(held_out(*rows[:2], rows[2] | {"tests": None}), "pass_at_1") == [TESTS, TESTS, None]


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (
            "exact_match",
            r"1 of 2 held-out rows have no number in their response, by which exact_match judges answers, first rows "
            r"\[1\]; set evaluation.task_metric: none",
        ),
        (
            "pass_at_1",
            r"2 of 2 held-out rows have no tests, by which .* rows \[0, 1\]; map examples.fields.tests to the field "
            r"that holds them, or set evaluation.task_metric: none",
        ),
    ],
)
def test_rows_that_a_metric_cannot_judge_are_named(metric, text):
    with pytest.raises(EvaluationError, match=text):
        read_expected(held_out(*rows_of("1", "one", "3")), metric)


def test_code_that_cannot_be_run_apart_is_refused_before_any_model_runs(monkeypatch):
    def refuse():
        raise sandbox.SandboxError("not here")

    monkeypatch.setattr(sandbox, "refuse_open", refuse)
    with pytest.raises(sandbox.SandboxError, match="not here"):
        read_expected(held_out(*rows_of("x", "y", "z", tests=TESTS)), "pass_at_1")


def test_an_answer_is_right_where_its_number_is_the_expected_one():
    expected = [Fraction(18), Fraction(18), Fraction(18), Fraction(-1, 2), None]
    said = ["She makes $18.00.", "18 or 19", "eighteen", "-0.5", "18"]
    found = judge([said, said[:2]], expected)
    assert [found[pair] for pair in zip(said, expected, strict=True)] == [True, False, False, True, None]
    assert len(found) == 5


def test_code_is_run_once_however_often_it_is_said(monkeypatch):
    asked = []
    monkeypatch.setattr(
        task_metrics.sandbox, "run_tests", lambda programs: [asked.append(one) or True for one in programs]
    )
    said = ["```python\nx\n```", "```python\nx\n```\nThat is it.", "y"]
    found = judge([said, said[::-1]], [TESTS] * 3)
    assert set(found.values()) == {True}
    assert asked == [("x\n", TESTS), ("y", TESTS)]


def test_an_answer_is_right_where_its_code_passes_the_tests():
    try:
        sandbox.refuse_open()
    except sandbox.SandboxError:
        pytest.skip("this system refuses user or network namespaces")
    right, wrong = "Sure:\n```python\ndef double(x):\n    return 2 * x\n```", "def double(x):\n    return x"
    found = judge([[right, wrong, right]], [TESTS, TESTS, None])
    assert found == {(right, TESTS): True, (wrong, TESTS): False, (right, None): None}
