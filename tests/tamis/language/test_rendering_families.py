"""Laws that hold for any conversation under templates that behave like those of known families."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.chat_templates import FAMILIES, end_of_turn, merging_tokenizer, random_conversations

from tamis.examples.conversations import Conversation, as_messages, as_tools, make_exchange
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import count_split, encode_conversations

ARGUMENTS = {"date_string": "26 Jul 2024"}
TEMPLATES = {
    (family, trim): Template(merging_tokenizer(text, trim=trim), arguments=ARGUMENTS)
    for family, text in FAMILIES.items()
    for trim in (False, True)
}
FAMILY = st.sampled_from(sorted(TEMPLATES))


def draw_rows(data, family: str, count: int = 1) -> list[Conversation]:
    made = random_conversations(system=family != "gemma", reasoning=family == "qwen_3")
    return [data.draw(made) for _ in range(count)]


def split(encoding) -> list[tuple[list[int], list[bool], int]]:
    """Tokens, answers and head of every sequence."""
    bounds = encoding.starts.tolist()
    return [
        (encoding.tokens[start:stop].tolist(), encoding.answers[start:stop].tolist(), int(head))
        for start, stop, head in zip(bounds, bounds[1:], encoding.heads, strict=False)
    ]


def find_runs(tokens: list[int], answers: list[bool]) -> list[list[int]]:
    """The answers of a sequence, one after the other."""
    runs: list[list[int]] = []
    for place, token in enumerate(tokens):
        if answers[place] and place and answers[place - 1]:
            runs[-1].append(token)
        elif answers[place]:
            runs.append([token])
    return runs


def render_parts(template: Template, row: Conversation, shown: tuple[dict, ...] = ()) -> list[list[dict]]:
    """The messages of each sequence that a row should have, with others shown after its system message."""

    def write(messages: list[dict]) -> str:
        return template.tokenizer.apply_chat_template(messages, tools=as_tools(row), tokenize=False, **ARGUMENTS)

    messages = as_messages(row)
    ends = [messages[: turn + 1] for turn in row.learnt]
    parts = [messages] if all(write(messages).startswith(write(part).rstrip()) for part in ends) else ends
    system = messages[0]["role"] == "system"
    return [[*part[:system], *shown, *part[system:]] for part in parts]


def encode_plainly(template: Template, messages: list[dict]) -> list[int]:
    return template.tokenizer.apply_chat_template(messages, tokenize=True, **ARGUMENTS)["input_ids"]


@given(FAMILY, st.data())
@settings(max_examples=150, deadline=None)
def test_a_row_has_the_ids_of_the_chat_template_whole_or_up_to_each_learnt_turn(name, data):
    template = TEMPLATES[name]
    (row,) = draw_rows(data, name[0])
    parts = render_parts(template, row)
    found = [tokens for tokens, _, _ in split(encode_conversations(template, [row]))]
    assert found == [encode_plainly(template, part) for part in parts]
    assert parts == [as_messages(row)] or name[0] in ("qwen_3", "mistral")


@given(FAMILY, st.data())
@settings(max_examples=150, deadline=None)
def test_answers_hold_each_learnt_turn_with_its_end_and_nothing_else(name, data):
    template = TEMPLATES[name]
    (row,) = draw_rows(data, name[0])
    sequences = split(encode_conversations(template, [row]))
    runs = [run for tokens, answers, _ in sequences for run in find_runs(tokens, answers)]
    texts = [template.tokenizer.decode(run) for run in runs]
    assert len(texts) == len(row.learnt)
    for place, text in zip(row.learnt, texts, strict=True):
        content = row.messages[place].content
        assert text.endswith(content.strip() + end_of_turn(name[0])) or text.endswith(content + end_of_turn(name[0]))
        assert not [one for one in range(len(row.messages)) if one != place and f"m{one}." in text]


@given(FAMILY, st.data())
@settings(max_examples=150, deadline=None)
def test_a_prefix_before_what_follows_the_head_is_the_whole_chat_with_the_demos(name, data):
    template, family = TEMPLATES[name], name[0]
    row, *demos = draw_rows(data, family, 3)
    encoding = encode_conversations(template, [row])
    try:
        prefix = encode_prefix(template, demos, row).tolist()
    except TemplateError:
        assert set(encoding.heads.tolist()) == {0}
        assert family == "mistral_first"
        assert row.messages[0].role == "system"
        return
    shown = tuple(turn for demo in demos for turn in as_messages(demo) if turn["role"] != "system")
    for (tokens, _, head), whole in zip(split(encoding), render_parts(template, row, shown), strict=True):
        assert prefix + tokens[head:] == encode_plainly(template, whole)
        assert encode_prefix(template, [], row).tolist() == tokens[:head]


@given(FAMILY, st.data())
@settings(max_examples=30, deadline=None)
def test_a_row_is_encoded_the_same_beside_others_and_again(name, data):
    template = TEMPLATES[name]
    rows = draw_rows(data, name[0], 3)
    together = split(encode_conversations(template, rows))
    assert together == split(encode_conversations(template, rows))
    assert together == [one for row in rows for one in split(encode_conversations(template, [row]))]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_templates_that_rewrite_turns_split_rows(family):
    system = None if family == "gemma" else "Be kind."
    twice = Conversation((*make_exchange("a", "b", system).messages, *make_exchange("c", "d").messages))
    encoding = encode_conversations(TEMPLATES[family, False], [make_exchange("a", "b", system), twice])
    assert count_split(encoding) == (family in ("qwen_3", "mistral"))
