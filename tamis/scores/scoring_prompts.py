"""What a model is asked about rows, by selector: groups of targets whose log-probabilities `baselines` scores.

Every row has the same number of targets, and targets stand in the order of the rows, whatever the groups.
"""

from collections.abc import Sequence
from typing import Any

from tamis.language.packing import Group
from tamis.language.templates import encode

RATINGS = ("1", "2", "3", "4", "5")
RATING_PROMPTS = (  # each stands before the same prompt and answer; the next token of the reply is the rating
    "How well does the answer do what the prompt asks for? Reply with one digit, from 1 (not at all) to 5 (fully).",
    "Grade this answer like a strict teacher: 1 is the worst grade, 5 is the best. Write the grade and nothing else.",
    "Should a student learn from this pair? Say a number only: 1 for never, 3 for perhaps, 5 for certainly.",
    "Is the answer right, complete and clear? Judge it on a scale from 1 (poor) to 5 (excellent), with a single digit.",
)
RATED = "{question}\n\nPrompt:\n{prompt}\n\nAnswer:\n{response}"


def ask_perplexity(tokenizer: Any, template: str, prompts: Sequence[str], responses: Sequence[str]) -> list[Group]:
    """Return one target per row: the response after its prompt, in the template."""
    code = encode(tokenizer, template, prompts, responses)
    return [Group(code.base, code.queries, code.responses)] if prompts else []


def ask_ifd(tokenizer: Any, template: str, prompts: Sequence[str], responses: Sequence[str]) -> list[Group]:
    """Return two targets per row: the response after its prompt, and after an empty prompt.

    **Source**: Li et al. 2023, arXiv 2308.12032; code tianyi-lab/Cherry_LLM @ 6c200ba, where the response alone stands
    after a beginning-of-sequence token and the header of an answer. Differs: it stands after all tokens of the template
    but the prompt's own (beginning of sequence, system text, an empty user turn, the header of the answer), so that the
    two losses differ by the prompt only; and the end-of-turn token counts.
    """
    code = encode(tokenizer, template, prompts, responses)
    empty = encode(tokenizer, template, [""], ["1"]).queries[0]
    queries = [ids for query in code.queries for ids in (query, empty)]
    return [Group(code.base, queries, [ids for ids in code.responses for _ in range(2)])] if prompts else []


def ask_selectit(tokenizer: Any, template: str, prompts: Sequence[str], responses: Sequence[str]) -> list[Group]:
    """Return a target per row, rating prompt and rating: the rating as the first token of the model's reply.

    **Source**: Liu et al. 2024, arXiv 2402.16705. Differs: our rating prompts; the question stands in the template, as
    a user's turn where that is a chat.

    Raises:
        ValueError: two ratings end in the same token.
    """
    ids = [tokenizer(rating, add_special_tokens=False).input_ids[-1] for rating in RATINGS]
    if len(set(ids)) < len(RATINGS):
        raise ValueError(f"the tokenizer does not tell the ratings {', '.join(RATINGS)} apart (last tokens {ids})")
    pairs = zip(prompts, responses, strict=True)
    texts = [
        RATED.format(question=question, prompt=prompt, response=response)
        for prompt, response in pairs
        for question in RATING_PROMPTS
    ]
    code = encode(tokenizer, template, texts, [RATINGS[0]] * len(texts))
    asked, last = [code.base + query[:-1] for query in code.queries], [query[-1:] for query in code.queries]
    return [
        Group(before, [end] * len(ids), [[rating] for rating in ids]) for before, end in zip(asked, last, strict=True)
    ]
