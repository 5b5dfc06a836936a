"""DELIFT's published wording, token by token."""

import numpy as np
import pytest
from transformers import BatchEncoding
from worlds.chat_templates import merging_tokenizer
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.delift import read_exchange
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import encode_conversations, encode_question, encode_shown, find_faults

ONE, TWO, THREE = make_exchange("one", "1"), make_exchange("two", "2 "), make_exchange("three", "3", "Be brief.")
BASE = "Instruction: Please generate a response to the following query.\n\n\nQuery: "
DEMO = (
    "Instruction:\nUse the following example as a guide to answer the query in the same format and style, "
    "providing a clear and concise response.\n\n\nExample:\n"
)
TEMPLATE = Template(merging_tokenizer(), "delift")


def ids(*parts: str) -> list[int]:
    """Token ids of parts that are tokenised apart."""
    return [one for part in parts for one in TEMPLATE.tokenizer(part, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("conversation", [ONE, TWO, THREE], ids=["one", "two", "instructed"])
def test_a_row_alone_is_instruction_and_query_as_one_text_and_the_response(conversation):
    prompt, response = read_exchange(conversation)
    found = encode_conversations(TEMPLATE, [conversation])
    assert found.tokens.tolist() == ids(f"{BASE}{prompt}\n</s>", f"{response}</s>")
    assert found.tokens[found.answers].tolist() == ids(f"{response}</s>")
    assert (found.heads.tolist(), found.tokens.dtype) == ([0], np.int32)


def test_a_token_crosses_from_the_instruction_into_the_query():
    assert ids(f"{BASE}the") != ids(BASE, "the")


@pytest.mark.parametrize("conversation", [ONE, TWO, THREE], ids=["one", "two", "instructed"])
def test_after_a_demo_stand_query_and_response_tokenised_apart(conversation):
    prompt, response = read_exchange(conversation)
    found = encode_shown(TEMPLATE, [conversation], encode_conversations(TEMPLATE, [conversation]))
    assert found.tokens.tolist() == ids(f"{prompt}\n</s>", f"{response}</s>")
    assert found.tokens[found.answers].tolist() == ids(f"{response}</s>")
    assert encode_question(TEMPLATE, conversation, head=0).tolist() == ids(f"{prompt}\n</s>")


def test_the_system_message_stands_before_the_prompt():
    assert read_exchange(THREE) == ("Be brief.\n\nthree", "3")


def test_no_demo_gives_the_head():
    assert encode_prefix(TEMPLATE, [], ONE).tolist() == []


def test_demos_take_the_place_of_the_head_under_one_header():
    assert encode_prefix(TEMPLATE, [TWO], ONE).tolist() == ids(f"{DEMO}two\n2 \n\n\nQuery:\n")
    shown = f"{DEMO}Be brief.\n\nthree\n3\n\n\nExample:\ntwo\n2 \n\n\nQuery:\n"
    assert encode_prefix(TEMPLATE, [THREE, TWO], ONE).tolist() == ids(shown)


def test_a_question_is_base_and_query():
    assert encode_question(TEMPLATE, THREE).tolist() == ids(f"{BASE}Be brief.\n\nthree\n</s>")


def test_braces_in_a_text_are_kept():
    text = TEMPLATE.tokenizer.decode(encode_prefix(TEMPLATE, [make_exchange("{response}", "{prompt} {0}")], ONE))
    assert "Example:\n{response}\n{prompt} {0}\n" in text


def test_a_beginning_of_sequence_token_starts_what_is_read_first_and_nothing_else():
    class Starting:
        eos_token, bos_token_id, added_tokens_decoder, all_special_tokens = "!", 1, {}, ("!",)

        def __call__(self, text, add_special_tokens=True):
            rows = [[5] * len(one) for one in ([text] if isinstance(text, str) else text)]
            rows = [[1, *row] for row in rows] if add_special_tokens else rows
            return BatchEncoding({"input_ids": rows[0] if isinstance(text, str) else rows})

    starting = Template(Starting(), "delift")
    found = encode_conversations(starting, [ONE, TWO])
    firsts = found.starts[:-1]
    assert np.flatnonzero(found.tokens == 1).tolist() == firsts.tolist()
    for made in (encode_prefix(starting, [ONE, TWO], ONE), encode_question(starting, ONE)):
        assert np.flatnonzero(made == 1).tolist() == [0]


SEVERAL = Conversation((*ONE.messages, *TWO.messages))
CALLING = Conversation(ONE.messages, '[{"name": "f"}]')
THINKING = Conversation((Message("user", "a"), Message("assistant", "b", True, '{"reasoning_content": "c"}')))
GIVEN = Conversation((Message("user", "a"), Message("assistant", "b")))


@pytest.mark.parametrize(
    ("conversation", "said"),
    [(SEVERAL, "user, assistant, user, assistant"), (CALLING, "tools or reasoning"), (THINKING, "tools or reasoning")],
    ids=["several", "calling", "thinking"],
)
def test_all_but_one_exchange_is_refused_with_the_way_out(conversation, said):
    with pytest.raises(TemplateError) as raised:
        encode_conversations(TEMPLATE, [ONE, conversation, conversation])
    assert "2 of 3 conversations cannot be written, first places [1, 2]" in str(raised.value)
    assert f"here are {said}; set models.template: chat, with models.chat_template: FILE" in str(raised.value)
    assert raised.value.place == 1


def test_an_answer_that_is_not_learnt_is_refused():
    with pytest.raises(TemplateError, match="no turn of it is learnt"):
        encode_conversations(TEMPLATE, [GIVEN])


def test_faults_are_told_per_conversation():
    found = find_faults(TEMPLATE, [ONE, SEVERAL, THREE])
    assert [bool(fault) for fault in found] == [False, True, False]
    assert "one exchange of prompt and response" in found[1]


def test_the_toy_world_reads_as_published():
    toy = Template(toy_tokenizer(), "delift")
    rows = [make_exchange("two", "2")]
    rest = encode_shown(toy, rows, encode_conversations(toy, rows)).tokens
    assert toy.tokenizer.decode([*encode_prefix(toy, [ONE], TWO), *rest]) == (
        f"{DEMO}one\n1\n\n\nQuery:\ntwo\n<|end|>2<|end|>"
    )
