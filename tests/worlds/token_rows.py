"""Rows of one exchange as lists of tokens, and back: what a plain pass reads and what it is to answer."""

from tamis.examples.conversations import make_exchange
from tamis.language.batches import Batch, plan_batches
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding, make_sequence
from tamis.language.rendering import encode_conversations


def make_rows(contexts: list[list[int]], answers: list[list[int]]) -> list:
    """Return one row of one sequence for each context and the answer that ends it."""
    return [[make_sequence(context, answer)] for context, answer in zip(contexts, answers, strict=True)]


def batch_rows(contexts: list[list[int]], answers: list[list[int]], tokens: int) -> list[Batch]:
    """Return the batches of such rows."""
    return plan_batches(make_rows(contexts, answers), tokens)


def list_pairs(encoding: Encoding) -> list[tuple[list[int], list[int]]]:
    """Return each row's tokens before its answer, head included, and its answer's."""
    return [cut_pair(encoding.row(place)) for place in range(len(encoding))]


def cut_pair(row: list) -> tuple[list[int], list[int]]:
    """Return the tokens of a row of one sequence before its answer, and its answer's."""
    (sequence,) = row
    context = sequence.tokens[~sequence.answers].tolist()
    assert sequence.tokens[len(context) :].tolist() == sequence.tokens[sequence.answers].tolist()
    return context, sequence.tokens[sequence.answers].tolist()


def encode_pairs(tokenizer, template: str, prompts: list[str], responses: list[str]) -> Encoding:
    """Return exchanges of prompt and response under a template."""
    rows = [make_exchange(*pair) for pair in zip(prompts, responses, strict=True)]
    return encode_conversations(Template(tokenizer, template), rows)
