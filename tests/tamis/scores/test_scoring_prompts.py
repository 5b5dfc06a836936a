import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from worlds.toys import toy_tokenizer

from tamis.scores.scoring_prompts import RATED, RATING_PROMPTS, ask_ifd, ask_perplexity, ask_selectit

PROMPTS, RESPONSES = ["one plus one", "say hi"], ["two", "hi!"]


def texts(tokenizer, groups) -> list[str]:
    """Every target as the text that the model reads, with | before what it is to answer."""
    return [
        f"{tokenizer.decode(group.prefix + query)}|{tokenizer.decode(response)}"
        for group in groups
        for query, response in zip(group.queries, group.responses, strict=True)
    ]


def test_perplexity_asks_for_the_response_after_its_prompt():
    tokenizer = toy_tokenizer()
    assert texts(tokenizer, ask_perplexity(tokenizer, "chat", PROMPTS, RESPONSES)) == [
        "<|user|>one plus one<|end|>\n<|assistant|>|two<|end|>",
        "<|user|>say hi<|end|>\n<|assistant|>|hi!<|end|>",
    ]


def test_ifd_asks_again_after_an_empty_prompt():
    tokenizer = toy_tokenizer()
    assert texts(tokenizer, ask_ifd(tokenizer, "chat", PROMPTS, RESPONSES)) == [
        "<|user|>one plus one<|end|>\n<|assistant|>|two<|end|>",
        "<|user|><|end|>\n<|assistant|>|two<|end|>",
        "<|user|>say hi<|end|>\n<|assistant|>|hi!<|end|>",
        "<|user|><|end|>\n<|assistant|>|hi!<|end|>",
    ]


def test_ifd_asks_in_the_published_wording_too():
    tokenizer = toy_tokenizer()
    first, alone, *_ = texts(tokenizer, ask_ifd(tokenizer, "delift", PROMPTS, RESPONSES))
    assert alone == first.replace("one plus one", "")


def test_selectit_asks_every_rating_after_every_rating_prompt():
    tokenizer = toy_tokenizer()
    asked = texts(tokenizer, ask_selectit(tokenizer, "chat", PROMPTS, RESPONSES))
    assert asked == [
        f"<|user|>{RATED.format(question=question, prompt=prompt, response=response)}<|end|>\n<|assistant|>|{rating}"
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        for question in RATING_PROMPTS
        for rating in range(1, 6)
    ]


def test_no_rows_ask_nothing():
    tokenizer = toy_tokenizer()
    assert [ask(tokenizer, "chat", [], []) for ask in (ask_perplexity, ask_ifd, ask_selectit)] == [[], [], []]


def test_a_tokenizer_that_cannot_tell_ratings_apart_is_refused():
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    with pytest.raises(ValueError, match="does not tell the ratings 1, 2, 3, 4, 5 apart"):
        ask_selectit(PreTrainedTokenizerFast(tokenizer_object=words), "chat", PROMPTS, RESPONSES)
