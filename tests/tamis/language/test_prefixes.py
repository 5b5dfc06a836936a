"""Heads and prefixes, and where no demo can be put; test_rendering_families has the laws."""

import numpy as np
import pytest
from worlds.chat_templates import (
    CALLING,
    CODE,
    DEMO,
    MISTRAL_FIRST,
    MISTRAL_TOOLS,
    QWEN_3,
    TOOLS,
    TWO,
    list_sequences,
    make_template,
)
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.prefixes import check_demos, encode_prefix
from tamis.language.rendering import encode_conversations


@pytest.mark.parametrize("tools", ["", TOOLS], ids=["plain", "tools"])
def test_the_head_is_the_whole_system_block(tools):
    made = make_template()
    found = encode_conversations(made, [Conversation(TWO.messages, tools)])
    head = made.tokenizer.decode(found.tokens[: found.heads[0]])
    assert head.startswith("<|im_start|>system\n")
    assert head.endswith("<|im_end|>\n")
    assert head.count("<|im_start|>") == 1
    assert ('"name": "f"' in head) == bool(tools)


@pytest.mark.parametrize("row", [CODE, TWO, Conversation(TWO.messages, TOOLS), DEMO, CALLING])
@pytest.mark.parametrize("demos", [[DEMO], [CALLING, DEMO], [Conversation(DEMO.messages, TOOLS), CODE, TWO]])
def test_a_prefix_and_what_follows_the_head_are_the_whole_chat(row, demos):
    made = make_template()
    found = encode_conversations(made, [row])
    system = row.messages[:1] if row.messages[0].role == "system" else ()
    shown = [turn for demo in demos for turn in demo.messages if turn.role != "system"]
    whole = encode_conversations(made, [Conversation((*system, *shown, *row.messages[len(system) :]), row.tools)])
    made_up = [*encode_prefix(made, demos, row).tolist(), *found.tokens[found.heads[0] :].tolist()]
    assert made_up == whole.tokens.tolist()


def test_no_demo_gives_exactly_the_head():
    made = make_template()
    for row in (CODE, DEMO, Conversation(TWO.messages, TOOLS)):
        found = encode_conversations(made, [row])
        assert encode_prefix(made, [], row).tolist() == found.tokens[: found.heads[0]].tolist()
        assert encode_prefix(made, [], row).dtype == np.int32


def test_a_chat_without_system_block_has_an_empty_head_and_takes_demos():
    made = Template(toy_tokenizer())
    found = encode_conversations(made, [CODE])
    assert (found.heads.tolist(), encode_prefix(made, [], CODE).tolist()) == ([0], [])
    check_demos(made, [CODE], found)
    assert made.tokenizer.decode(encode_prefix(made, [make_exchange("one", "1")], CODE)) == (
        "<|user|>one<|end|>\n<|assistant|>1<|end|>\n"
    )


def test_rows_before_which_no_demo_can_be_put_have_no_head_and_are_named():
    made = make_template(MISTRAL_FIRST)
    rows = [CODE, DEMO, TWO, DEMO]
    found = encode_conversations(made, rows)
    assert found.heads.tolist() == [1, 0, 1, 0]
    with pytest.raises(TemplateError, match=r"otherwise once demos stand before it.* shown to 'three'; set models\."):
        encode_prefix(made, [CODE], DEMO)
    said = r"2 of 4 conversations cannot have demos before them, first places \[1, 3\]; place 1: the chat template"
    with pytest.raises(TemplateError, match=said) as raised:
        check_demos(made, rows, found)
    assert raised.value.place == 1


@pytest.mark.parametrize("row", [CODE, TWO])
def test_demos_stand_before_tools_that_stand_in_the_last_question(row):
    made = make_template(MISTRAL_TOOLS)
    asked = Conversation(row.messages, TOOLS)
    found = encode_conversations(made, [asked])
    prefix = encode_prefix(made, [DEMO], asked).tolist()
    for part in list_sequences(found):
        tokens = found.tokens[part].tolist()
        shown = made.tokenizer.decode([*prefix, *tokens[found.heads[0] :]])
        whole = made.tokenizer.decode(tokens)
        assert shown == whole.replace("<s>", "<s>[INST] three[/INST] 3</s>", 1)
        assert shown.count("[TOOLS]") == 1


def test_a_demo_that_the_template_refuses_is_refused():
    lone = Conversation((Message("assistant", "a"), Message("assistant", "b", learnt=True)))
    with pytest.raises(TemplateError, match="refuses the conversation: questions and answers must take turns"):
        encode_prefix(make_template(MISTRAL_FIRST), [lone], CODE)


def test_reasoning_of_a_demo_is_shown_as_an_earlier_turns():
    made = make_template(QWEN_3)
    demo = Conversation((Message("user", "a"), Message("assistant", "b", True, '{"reasoning_content": "hm"}')))
    shown = made.tokenizer.decode(encode_prefix(made, [demo], CODE))
    assert shown == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
