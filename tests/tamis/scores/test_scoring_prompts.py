import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from worlds.chat_templates import (
    CALLING,
    FAMILIES,
    GEMMA,
    MISTRAL_TOOLS,
    QWEN_3,
    TOOLS,
    TWO,
    make_template,
    random_conversations,
)
from worlds.token_rows import list_pairs
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template, TemplateError
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


ASKED = {family: make_template(text, date_string="26 Jul 2024") for family, text in FAMILIES.items()}
REFUSING = "{% for turn in messages %}{% if not turn.content %}{{ raise_exception('say something') }}{% endif %}"
REFUSING += "{% endfor %}" + QWEN_3


@pytest.mark.parametrize("family", sorted(ASKED))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_ifd_asks_for_the_same_answers_after_empty_questions_whatever_the_template(family, data):
    template = ASKED[family]
    made = random_conversations(system=family != "gemma", reasoning=family == "qwen_3")
    rows = [data.draw(made) for _ in range(2)]
    asked = ask_ifd(template, rows)
    for place, row in enumerate(rows):
        whole, emptied = asked.row(2 * place), asked.row(2 * place + 1)
        assert len(whole) == len(emptied)
        for one, other in zip(whole, emptied, strict=True):
            assert one.tokens[one.answers].tolist() == other.tokens[other.answers].tolist()
            given = template.tokenizer.decode(other.tokens[~other.answers])
            asked_for = [f"m{number}." for number, message in enumerate(row.messages) if message.role == "user"]
            assert not any(said in given for said in asked_for)


@pytest.mark.parametrize("family", ["llama", "qwen_2", "gemma"])
def test_ifd_empties_the_answers_of_tools_and_keeps_the_calls(family):
    asked, tokenizer = ask_ifd(ASKED[family], [CALLING]), ASKED[family].tokenizer
    (*_, whole), (*_, emptied) = asked.row(0), asked.row(1)
    assert "3" in tokenizer.decode(whole.tokens)
    assert "3" not in tokenizer.decode(emptied.tokens)
    assert ('"x"' in tokenizer.decode(emptied.tokens)) == (family in ("llama", "qwen_2"))  # that write calls


@pytest.mark.parametrize("family", sorted(ASKED))
def test_ifd_of_a_question_that_is_empty_already_is_of_two_equal_rows(family):
    (whole,), (emptied,) = (ask_ifd(ASKED[family], [make_exchange("", "b")]).row(place) for place in (0, 1))
    assert np.array_equal(whole.tokens, emptied.tokens)
    assert np.array_equal(whole.answers, emptied.answers)


def test_ifd_writes_tools_where_they_stood_in_a_template_that_compares_messages():
    template = make_template(MISTRAL_TOOLS)
    asked = ask_ifd(template, [Conversation(TWO.messages, TOOLS), Conversation(TWO.messages[:2], TOOLS)])
    found = [[template.tokenizer.decode(one.tokens) for one in asked.row(place)] for place in range(4)]
    tools = f"[TOOLS]{TOOLS}"
    assert found[0] == [f"<s>{tools}[INST] a[/INST] b</s>", f"<s>[INST] a[/INST] b</s>{tools}[INST] c[/INST] d</s>"]
    assert found[1] == [text.replace(" a[", " [").replace(" c[", " [") for text in found[0]]
    assert found[3] == [f"<s>{tools}[INST] [/INST] b</s>"]


def test_a_template_that_refuses_empty_questions_is_refused_with_the_selectors_name():
    template = make_template(REFUSING)
    with pytest.raises(TemplateError) as raised:
        ask_ifd(template, [TWO, make_exchange("a", "b")])
    assert str(raised.value) == (
        "2 of 2 conversations cannot be written with their questions emptied, as selector ifd asks for their answers, "
        "first places [0, 1]; place 0: the chat template refuses the conversation: say something; set "
        "selection.selector: perplexity, or another one, or models.chat_template: FILE, a template that writes empty "
        "questions"
    )
    assert raised.value.place == 0
    assert len(ask_perplexity(template, [TWO])) == 1


def test_a_row_that_no_selector_could_ask_about_is_refused_as_it_is():
    with pytest.raises(TemplateError, match=r"conversations cannot be written, .* a system message has no place here"):
        ask_ifd(make_template(GEMMA), [TWO, make_exchange("a", "b", "S")])


def test_selectit_rates_the_last_learnt_turn_after_a_transcript_of_what_stands_before_it():
    tokenizer = toy_tokenizer()
    first = texts(tokenizer, ask_selectit(Template(tokenizer), [TURNS]))[0]
    assert "Prompt:\nuser: one?\n\nassistant: 1\n\nuser: two?\n\nAnswer:\n2<|end|>" in first


def test_rows_that_are_rated_share_all_but_their_last_token():
    asked = ask_selectit(Template(toy_tokenizer()), ROWS)
    assert len(list(asked.by_head(range(len(asked))))) == len(ROWS) * len(RATING_PROMPTS)
    assert (asked.own_tokens == 2).all()
