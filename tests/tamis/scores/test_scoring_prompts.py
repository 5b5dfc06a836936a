import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from worlds.token_rows import list_pairs
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template
from tamis.scores.scoring_prompts import RATED, RATING_PROMPTS, ask_ifd, ask_perplexity, ask_selectit

PROMPTS, RESPONSES = ["one plus one", "say hi"], ["two", "hi!"]
ROWS = [make_exchange(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
TURNS = Conversation(
    (
        Message("user", "one?"),
        Message("assistant", "1", learnt=True),
        Message("user", "two?"),
        Message("assistant", "2", learnt=True),
    )
)


def texts(tokenizer, asked) -> list[str]:
    """Every row as the text that the model reads, with | before what it is to answer."""
    return [f"{tokenizer.decode(before)}|{tokenizer.decode(answer)}" for before, answer in list_pairs(asked)]


def test_perplexity_asks_for_the_response_after_its_prompt():
    tokenizer = toy_tokenizer()
    assert texts(tokenizer, ask_perplexity(Template(tokenizer), ROWS)) == [
        "<|user|>one plus one<|end|>\n<|assistant|>|two<|end|>",
        "<|user|>say hi<|end|>\n<|assistant|>|hi!<|end|>",
    ]


def test_ifd_asks_again_after_an_empty_prompt():
    tokenizer = toy_tokenizer()
    assert texts(tokenizer, ask_ifd(Template(tokenizer), ROWS)) == [
        "<|user|>one plus one<|end|>\n<|assistant|>|two<|end|>",
        "<|user|><|end|>\n<|assistant|>|two<|end|>",
        "<|user|>say hi<|end|>\n<|assistant|>|hi!<|end|>",
        "<|user|><|end|>\n<|assistant|>|hi!<|end|>",
    ]


def test_ifd_asks_in_the_published_wording_too():
    tokenizer = toy_tokenizer()
    first, alone, *_ = texts(tokenizer, ask_ifd(Template(tokenizer, "delift"), ROWS))
    assert alone == first.replace("one plus one", "")


def test_selectit_asks_every_rating_after_every_rating_prompt():
    tokenizer = toy_tokenizer()
    asked = texts(tokenizer, ask_selectit(Template(tokenizer), ROWS))
    assert asked == [
        f"<|user|>{RATED.format(question=question, prompt=prompt, response=response)}<|end|>\n<|assistant|>|{rating}"
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        for question in RATING_PROMPTS
        for rating in range(1, 6)
    ]


def test_no_rows_ask_nothing():
    template = Template(toy_tokenizer())
    assert [len(ask(template, [])) for ask in (ask_perplexity, ask_ifd, ask_selectit)] == [0, 0, 0]


def test_a_tokenizer_that_cannot_tell_ratings_apart_is_refused():
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    with pytest.raises(ValueError, match="does not tell the ratings 1, 2, 3, 4, 5 apart"):
        ask_selectit(Template(PreTrainedTokenizerFast(tokenizer_object=words)), ROWS)


def test_ifd_of_a_conversation_empties_every_question_and_keeps_every_answer():
    tokenizer = toy_tokenizer()
    asked = ask_ifd(Template(tokenizer), [TURNS])
    ((whole,), (emptied,)) = asked.row(0), asked.row(1)
    assert tokenizer.decode(emptied.tokens) == tokenizer.decode(whole.tokens).replace("one?", "").replace("two?", "")
    for one in (whole, emptied):
        assert tokenizer.decode(one.tokens[one.answers]) == "1<|end|>2<|end|>"


def test_selectit_rates_the_last_learnt_turn_after_a_transcript_of_what_stands_before_it():
    tokenizer = toy_tokenizer()
    first = texts(tokenizer, ask_selectit(Template(tokenizer), [TURNS]))[0]
    assert "Prompt:\nuser: one?\n\nassistant: 1\n\nuser: two?\n\nAnswer:\n2<|end|>" in first


def test_rows_that_are_rated_share_all_but_their_last_token():
    asked = ask_selectit(Template(toy_tokenizer()), ROWS)
    assert len(list(asked.by_head(range(len(asked))))) == len(ROWS) * len(RATING_PROMPTS)
    assert (asked.own_tokens == 2).all()
