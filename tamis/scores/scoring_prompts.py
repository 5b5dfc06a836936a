"""What a model is asked about conversations, by selector: rows whose answers' log-probabilities `baselines` scores.

Every conversation has the same number of rows in what is returned, those of one after those of another; rows that begin
alike say so by their heads, which are run once.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from tamis.examples.conversations import Conversation, Message, transcribe
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.encoding import Encoding, join_rows, make_sequence
from tamis.language.rendering import encode_conversations, encode_question, find_faults

EMPTIED = ("user", "tool")  # roles whose messages `ifd` empties
RATINGS = ("1", "2", "3", "4", "5")
RATING_PROMPTS = (  # each stands before the same prompt and answer; the next token of the reply is the rating
    "How well does the answer do what the prompt asks for? Reply with one digit, from 1 (not at all) to 5 (fully).",
    "Grade this answer like a strict teacher: 1 is the worst grade, 5 is the best. Write the grade and nothing else.",
    "Should a student learn from this pair? Say a number only: 1 for never, 3 for perhaps, 5 for certainly.",
    "Is the answer right, complete and clear? Judge it on a scale from 1 (poor) to 5 (excellent), with a single digit.",
)
RATED = "{question}\n\nPrompt:\n{prompt}\n\nAnswer:\n{response}"


def ask_perplexity(template: Template, conversations: Sequence[Conversation]) -> Encoding:
    """Return one row per conversation: its answers where they stand."""
    return encode_conversations(template, conversations)


def ask_ifd(template: Template, conversations: Sequence[Conversation]) -> Encoding:
    """Return two rows per conversation: its answers where they stand, and with all questions emptied.

    **Source**: Li et al. 2023, arXiv 2308.12032; code tianyi-lab/Cherry_LLM @ 6c200ba, where the response alone stands
    after a beginning-of-sequence token and the header of an answer. Differs: it stands after all tokens of the template
    but the prompt's own (beginning of sequence, system text, an empty user turn, the header of the answer), so that the
    two losses differ by the prompt only; the end-of-turn token counts; and in a conversation of several exchanges every
    user's turn is emptied, and every answer of a tool, and earlier answers stay.

    Raises:
        TemplateError: conversations cannot be written, or not with their questions emptied: their count, the first
            places and the first one's fault.
    """
    emptied = [empty_questions(each) for each in conversations]
    pairs = [one for both in zip(conversations, emptied, strict=True) for one in both]
    try:
        return encode_conversations(template, pairs)
    except TemplateError:
        _refuse_empty(find_faults(template, conversations), find_faults(template, emptied))
        raise


def _refuse_empty(whole: Sequence[str | None], emptied: Sequence[str | None]) -> None:
    """Refuse conversations that can be written as they are, but not with their questions emptied."""
    places = [place for place, pair in enumerate(zip(whole, emptied, strict=True)) if pair[1] and not pair[0]]
    if places:
        raise TemplateError(
            f"{len(places)} of {len(whole)} conversations cannot be written with their questions emptied, as selector "
            f"ifd asks for their answers, first places {places[:3]}; place {places[0]}: {emptied[places[0]]}; set "
            "selection.selector: perplexity, or another one, or models.chat_template: FILE, a template that writes "
            "empty questions",
            places[0],
        )


def empty_questions(conversation: Conversation) -> Conversation:
    """Return a conversation whose user's turns and tool answers say nothing.

    With tools, questions that are emptied are numbered, which no template writes: some tell the last question, which
    they write the tools before, by comparing messages.

    >>> from tamis.examples.conversations import make_exchange
    >>> empty_questions(make_exchange("Hi", "Hello")).messages[0].content
    ''
    """
    messages = [replace(one, content="") if one.role in EMPTIED else one for one in conversation.messages]
    asked = [place for place, one in enumerate(messages) if one.role == "user"]
    if conversation.tools and len(asked) > 1:
        for place in asked:
            details = json.loads(messages[place].details or "{}") | {"number": place}
            messages[place] = replace(messages[place], details=json.dumps(details, ensure_ascii=False))
    return replace(conversation, messages=tuple(messages))


def ask_selectit(template: Template, conversations: Sequence[Conversation]) -> Encoding:
    """Return a row per conversation, rating prompt and rating: the rating as the first token of the model's reply.

    **Source**: Liu et al. 2024, arXiv 2402.16705. Differs: our rating prompts; the question stands in the template, as
    a user's turn where that is a chat; of a conversation of several exchanges the last learnt turn is rated, after a
    transcript of what stands before it.

    Raises:
        ValueError: two ratings end in the same token.
    """
    tokenizer = template.tokenizer
    ids = [tokenizer(rating, add_special_tokens=False).input_ids[-1] for rating in RATINGS]
    if len(set(ids)) < len(RATINGS):
        raise ValueError(f"the tokenizer does not tell the ratings {', '.join(RATINGS)} apart (last tokens {ids})")
    rows, heads = [], []
    for conversation in conversations:
        prompt, response = transcribe(conversation)
        for question in RATING_PROMPTS:
            text = RATED.format(question=question, prompt=prompt, response=response)
            rated = Conversation((Message("user", text), Message("assistant", RATINGS[0], learnt=True)))
            asked = encode_question(template, rated)
            rows += [[make_sequence(asked, [rating])] for rating in ids]
            heads += [len(asked) - 1] * len(ids)
    return join_rows(rows, heads)
