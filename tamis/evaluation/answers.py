"""What an answer says: its number, or its code."""

import re
from decimal import Decimal
from fractions import Fraction

MARK = "####"  # gsm8k writes it before the number that answers a question
MINUS = "[-\u2212]"
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]]){MINUS}\$?|\${MINUS}|)"  # after a digit, a letter or a bracket a minus is a subtraction
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))"
    r"(?:(?P<part>\.[0-9]+)|/(?P<below>0*[1-9][0-9]*)(?!\.?[0-9]))?"
)
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
PYTHON = ("python", "python3", "py")


def find_number(text: str) -> Fraction | None:
    """Return the number that a text answers with, exactly: 18 and 18.0 are the same.

    The first one after `####`, where that stands in the text, else the last one. Commas of thousands, a dollar sign and
    what follows a number (a full stop, %, a unit) do not count; 3/4 is a fraction. Powers, words and mixed numbers
    (1 1/2, whose last number is a half) are not read.

    **Source**: gsm8k marks its answers so (Cobbe et al. 2021, arXiv 2110.14168, data set as published). Differs: texts
    without the mark are read, too, by their last number, as for svamp (arXiv 2103.07191), whose answers are numbers.

    >>> find_number("He sells 3 at $6 each. #### 1,018.0"), find_number("it is -2."), find_number("5-3 is two")
    (Fraction(1018, 1), Fraction(-2, 1), Fraction(3, 1))
    """
    _, mark, answer = text.partition(MARK)
    numbers = list(NUMBER.finditer(answer if mark else text))
    if not numbers:
        return None
    found = numbers[0 if mark else -1]
    size = Fraction(Decimal(found["whole"].replace(",", "") + (found["part"] or "")))  # texts of any length are exact
    size /= Fraction(Decimal(found["below"] or 1))
    return -size if found["sign"] else size


def find_code(text: str) -> str:
    '''Return the Python code of an answer: its first fenced block of Python, else its first block, else all of it.

    A block that is not closed, as in an answer cut short, goes to the end.

    >>> find_code("""So:
    ... ```python
    ... x = 1
    ... ```
    ... Done.""")
    'x = 1\\n'
    '''
    blocks = FENCE.findall(text)
    python = [code for language, code in blocks if language.lower() in PYTHON]
    return (python or [code for _, code in blocks] or [text])[0]
