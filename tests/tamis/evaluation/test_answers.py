"""Numbers and code in answers."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.evaluation.answers import find_code, find_number

WORDS = st.lists(st.sampled_from(["so", "he has", "per day,", "(in all)", "it's", "=", "-", "$", ",", "."]), max_size=5)
NUMBERS = st.tuples(st.integers(-(10**7), 10**7), st.integers(0, 4))


def write(number: tuple[int, int], thousands: str, dollar: str, end: str) -> str:
    """A decimal number as people write it."""
    units, places = number
    whole, part = divmod(abs(units), 10**places)
    text = f"{whole:{thousands}}" + (f".{part:0{places}}" if places else "")
    return ("-" if units < 0 else "") + dollar + text + end


def slow_number(text: str) -> Fraction | None:
    """The last word, or the first after the mark, that is a number without its punctuation."""
    words = text.split("####", 1)[-1].split()
    for word in words if "####" in text else reversed(words):
        bare = word.strip("()=%.").replace("$", "").replace(",", "")
        try:
            return Fraction(bare)
        except ValueError:
            continue
    return None


@given(st.lists(st.tuples(WORDS, NUMBERS), max_size=4), WORDS, st.data())
def test_the_answer_is_that_of_the_slow_reading_word_by_word(parts, last, data):
    style = [st.sampled_from(choices) for choices in (("", ","), ("", "$"), ("", ".", "%"))]
    words = [[*before, write(number, *(data.draw(one) for one in style))] for before, number in parts]
    mark = data.draw(st.integers(-1, len(words)))
    if 0 <= mark < len(words):
        words[mark].insert(0, "####")
    text = " ".join(word for group in [*words, last] for word in group)
    assert find_number(text) == slow_number(text)


@given(NUMBERS, st.sampled_from(["{}", "#### {}", "1, 2 and {}", "-3.5 * 2 = {}", "a\n\n####{}\nor 7"]))
def test_a_number_is_the_same_however_it_is_written(number, around):
    value = Fraction(number[0], 10 ** number[1])
    for thousands in ("", ","):
        for dollar in ("", "$"):
            for end in ("", ".", ".\n", "%", " apples", "!", "**", "</s>"):
                assert find_number(around.format(write(number, thousands, dollar, end))) == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("18.0", 18),
        ("18.", 18),
        ("the answer is **$1,234.50**.", Fraction("1234.5")),
        ("$-5", -5),
        ("-$5", -5),
        ("\u22123", -3),
        ("(-3)", -3),
        ("x=-3", -3),
        ("16 - 3 - 4", 4),
        ("16-3-4", 4),
        ("f(2)-3", 3),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3/4 of it", Fraction(-3, 4)),
        ("3/0", 0),
        ("1/2.5", Fraction("2.5")),
        ("1,2,3", 3),
        ("100,2000", 2000),
        ("<<48/2=24>>24 clips", 24),
        ("2 + 2 = 4 #### 5 or 6", 5),
        ("007", 7),
    ],
)
def test_numbers_are_read_as_people_write_them(text, number):
    assert find_number(text) == number


def test_a_number_of_any_length_is_exact():
    assert find_number("9" * 5000) == 10**5000 - 1


@pytest.mark.parametrize("text", ["", "none", "eighteen", "-", "$", "1 2 3 ####", "#### none", "\u0663"])
def test_a_text_without_a_number_answers_none(text):
    assert find_number(text) is None


BLOCK = "```python\ndef f():\n    return 1\n```"
CODE = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BLOCK, CODE),
        (f"Sure:\n\n{BLOCK}\nIt is one.\n```python\nf()\n```", CODE),
        (f"First\n```bash\npip install x\n```\nthen\n{BLOCK}", CODE),
        (BLOCK.replace("python", "Python3 title='a'"), CODE),
        (BLOCK.replace("python", ""), CODE),
        (BLOCK.replace("python", "javascript"), CODE),
        (BLOCK.removesuffix("```"), CODE),
        (BLOCK.removesuffix("\n```"), CODE.rstrip("\n")),
        ("  " + BLOCK.replace("\n```", "\n  ```"), CODE),
        ("```python\n```\n", ""),
        (CODE, CODE),
        ("x = 'a```b'", "x = 'a```b'"),
        ("", ""),
    ],
)
def test_code_is_the_first_block_of_python_or_all_of_an_answer(text, code):
    assert find_code(text) == code


@given(st.text(st.sampled_from("ab \n`\t-,./$#0123456789"), max_size=40))
def test_any_text_has_code_and_maybe_a_number(text):
    assert find_code(text) in text
    found = find_number(text)
    assert found is None or (find_number(f"{text} #### {found}") == found or "####" in text)


def test_a_json_number_reads_as_itself():
    for value in (51.0, 0.1, -2.5, 1234567.0):
        assert find_number(json.dumps(value)) == Fraction(str(value))
