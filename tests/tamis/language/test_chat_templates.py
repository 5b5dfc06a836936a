"""Texts that chat templates write, where their answers stand, and what is refused."""

import pytest
from worlds.chat_templates import (
    CALLING,
    FAMILIES,
    GEMMA,
    LLAMA,
    MARKED,
    MISTRAL,
    QWEN_2,
    QWEN_3,
    TOOLS,
    merging_tokenizer,
)
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import (
    LEFT_OUT,
    Template,
    TemplateError,
    check_template,
    find_left_out,
    list_left_out,
    refuse_moving,
    render,
    write_conversation,
)

DATED = {"date_string": "26 Jul 2024"}
USER = "<|im_start|>user\n"
ASSISTANT = "<|im_start|>assistant\n"
END = "<|im_end|>\n"
BARE = "{% for turn in messages %}{{ turn.role + ': ' + turn.content + '\\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def template(text: str, **arguments) -> Template:
    return Template(merging_tokenizer(text), arguments=arguments)


def chat(*texts: str, learnt: str = "", system: str | None = None) -> Conversation:
    """Turns that begin with a question; of the answers those are learnt that stand in `learnt`, all without it."""
    roles = ["user", "assistant"] * len(texts)
    turns = [
        Message(role, text, role == "assistant" and (not learnt or text in learnt.split()))
        for role, text in zip(roles, texts, strict=False)
    ]
    return Conversation((*([Message("system", system)] if system else []), *turns))


def answers(template: Template, conversation: Conversation) -> list[list[str]]:
    """The texts of the answers of each sequence."""
    written = write_conversation(template, conversation)
    return [[template.control.show(one.text[slice(*span)]) for span in one.answers] for one in written]


def test_an_answer_stands_between_the_generation_prompt_and_the_line_end_after_its_end_of_turn():
    (found,) = write_conversation(template(QWEN_2), make_exchange("Hi", "Hello"))
    assert found.text[slice(*found.answers[0])] == "Hello<|im_end|>"
    assert found.text[: found.answers[0][0]].endswith(f"{USER}Hi{END}{ASSISTANT}")
    assert found.text[found.answers[0][1] :] == "\n"


def test_only_learnt_turns_are_answers():
    assert answers(template(QWEN_2), chat("a", "b", "c", "d", learnt="d")) == [["d<|im_end|>"]]
    assert answers(template(QWEN_2), chat("a", "b", "c", "d", learnt="b")) == [["b<|im_end|>"]]
    assert answers(template(QWEN_2), chat("a", "b", "c", "d")) == [["b<|im_end|>", "d<|im_end|>"]]


def test_messages_after_the_last_learnt_turn_are_written_too():
    conversation = chat("a", "b", "c")
    (found,) = write_conversation(template(QWEN_2), conversation)
    assert found.text.endswith(f"{ASSISTANT}b{END}{USER}c{END}")
    assert (found.messages, [found.text[slice(*span)] for span in found.answers]) == (3, ["b<|im_end|>"])


def test_leading_blanks_of_an_answer_belong_to_it():
    assert answers(template(QWEN_2), make_exchange("a", "    return 1")) == [["    return 1<|im_end|>"]]


@pytest.mark.parametrize("family", [LLAMA, GEMMA])
def test_an_answer_that_the_template_trims_is_found_without_its_blanks(family):
    end = "<|eot|>" if family == LLAMA else "<end_of_turn>"
    assert answers(template(family, **DATED), make_exchange("a", "\n  b \n")) == [[f"b{end}"]]


def test_a_text_that_stands_everywhere_in_the_chat_is_no_answer_elsewhere():
    assert answers(template(QWEN_2), chat("user", "assistant", "assistant", "user")) == [
        ["assistant<|im_end|>", "user<|im_end|>"]
    ]


def test_a_text_that_is_the_end_of_turn_is_an_answer():
    assert answers(template(QWEN_2), make_exchange("a", "<|im_end|>")) == [["<|im_end|><|im_end|>"]]


def test_a_template_that_leaves_out_a_learnt_tool_call_is_refused():
    call = '{"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}]}'
    asked = Conversation((Message("user", "Rain?"), Message("assistant", "Let me see.", learnt=True, details=call)))
    text = r"does not write the tool call of message 1, 'weather', .* set models.chat_template: FILE, a template that"
    for own in (GEMMA, QWEN_3, MARKED, toy_tokenizer().chat_template):
        with pytest.raises(TemplateError, match=text):
            write_conversation(template(own), asked)
    assert len(write_conversation(template(QWEN_2), asked)) == 1


def test_an_answer_without_text_is_what_the_template_makes_of_its_calls():
    call = '{"tool_calls": [{"function": {"name": "f", "arguments": {}}, "type": "function"}]}'
    turns = (Message("user", "a"), Message("assistant", "", True, call), Message("tool", "b"))
    asked = Conversation((*turns, Message("assistant", "c", True)))
    made = '\n{"name": "f", "arguments": {}}<|im_end|>'
    assert answers(template(QWEN_2), asked) == [[made, "c<|im_end|>"]]


def test_turns_that_are_rewritten_later_end_sequences_of_their_own():
    found = write_conversation(template(QWEN_3), chat("a", "b", "c", "d"))
    assert [one.text for one in found] == [
        f"{USER}a{END}{ASSISTANT}<think>\n\n</think>\n\nb{END}",
        f"{USER}a{END}{ASSISTANT}b{END}{USER}c{END}{ASSISTANT}<think>\n\n</think>\n\nd{END}",
    ]
    assert answers(template(QWEN_3), chat("a", "b", "c", "d")) == [
        ["<think>\n\n</think>\n\nb<|im_end|>"],
        ["<think>\n\n</think>\n\nd<|im_end|>"],
    ]


def test_a_row_is_one_sequence_where_no_learnt_turn_is_rewritten():
    assert len(write_conversation(template(QWEN_3), chat("a", "b", "c", "d", learnt="d"))) == 1


def test_an_answer_is_what_follows_a_generation_prompt_that_has_closed_the_reasoning():
    thinking, silent = template(QWEN_3), template(QWEN_3, enable_thinking=False)
    assert answers(thinking, make_exchange("a", "b")) == [["<think>\n\n</think>\n\nb<|im_end|>"]]
    assert answers(silent, make_exchange("a", "b")) == [["b<|im_end|>"]]


def test_a_question_that_is_rewritten_later_splits_the_row():
    found = write_conversation(template(MISTRAL), chat("a", "b", "c", "d", system="S"))
    assert [one.text for one in found] == [
        "<s>[INST] S\n\na[/INST] b</s>",
        "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST] d</s>",
    ]


@pytest.mark.parametrize("answer", ["b", "a", "t", "<|im_start|>", "<b>", "\n  b", "<think>\nx", "(hm)\nx"])
def test_content_right_after_a_part_of_the_generation_prompt_is_an_answer(answer):
    opened = template(FAMILIES["opened"].replace("<think>", "(hm)"))
    if answer.startswith("(hm)\n"):  # as the generation prompt has it
        assert answers(opened, make_exchange("a", answer)) == [["x<|im_end|>"]]
    else:
        assert answers(opened, make_exchange("a", answer)) == [[f"{answer}<|im_end|>"]]


def test_generation_marks_tell_the_answers_whatever_the_generation_prompt_is():
    assert answers(template(MARKED), chat("a", "b", "c", "d")) == [["b<|im_end|>\n", "d<|im_end|>\n"]]
    assert answers(template(MARKED), chat("a", "b", "c", "d", learnt="b")) == [["b<|im_end|>\n"]]


def test_several_marks_of_a_turn_are_one_answer():
    twice = MARKED.replace(
        "{{ turn.content + '<|im_end|>\\n' }}{% endgeneration %}",
        "{{ turn.content }}{% endgeneration %}{{ '|' }}{%- generation %}{{ '<|im_end|>' }}{% endgeneration %}",
    )
    assert answers(template(twice), chat("a", "b", "c", "d", learnt="d")) == [["d", "<|im_end|>"]]


def test_marks_that_do_not_hold_the_answer_are_refused():
    misplaced = MARKED.replace("{{ turn.content + '<|im_end|>\\n' }}{% endg", "{{ 'so' }}{% endg").replace(
        "{%- else %}", "{{ turn.content }}{%- else %}"
    )
    with pytest.raises(TemplateError, match=r"content of message 1, 'b', where its answer stands, 'so'; put it within"):
        write_conversation(template(misplaced), make_exchange("a", "b"))


def test_marks_that_hold_nothing_are_refused():
    empty = MARKED.replace("turn.content + '<|im_end|>\\n' }}{% endg", "'' }}{% endg")
    with pytest.raises(TemplateError, match="where its answer stands, ''; put it within the marks"):
        write_conversation(template(empty), make_exchange("a", "b"))


def test_a_template_that_leaves_out_an_answers_text_is_refused():
    silent = QWEN_2.replace("turn.content }}", "(turn.content if turn.role == 'user' else '') }}")
    with pytest.raises(TemplateError, match=r"content of message 1, 'b', where its answer stands, '<\|im_end\|>'"):
        write_conversation(template(silent), make_exchange("a", "b"))


@pytest.mark.parametrize(
    "text", [BARE, MARKED.replace("turn.content + '<|im_end|>\\n' }}{% endg", "turn.content }}{% endg")]
)
def test_a_template_that_ends_an_answer_with_nothing_is_refused(text):
    with pytest.raises(TemplateError, match=r"ends an answer with nothing, after 'b c', .* set models.chat_template"):
        write_conversation(template(text), make_exchange("a", "b c"))


def test_an_answer_that_cannot_be_told_from_what_stands_before_it_is_refused_with_what_differs():
    moody = QWEN_2.replace("{%- set given", "{{- messages | length }}{%- set given")
    with pytest.raises(TemplateError) as raised:
        write_conversation(template(moody), make_exchange("a", "b"))
    said = str(raised.value)
    assert "message 1 after its generation prompt: at character 0 stands '1<|im_start|>system" in said
    assert "without the answer and '2<|im_start|>system" in said
    assert "set models.chat_template: FILE" in said


def test_what_a_template_raises_is_quoted():
    with pytest.raises(
        TemplateError, match="the chat template refuses the conversation: a system message has no place here"
    ):
        write_conversation(template(GEMMA), make_exchange("a", "b", "S"))
    with pytest.raises(TemplateError, match="refuses the conversation: questions and answers must take turns"):
        write_conversation(template(MISTRAL), Conversation((Message("user", "q"), *make_exchange("a", "b").messages)))


def test_errors_of_python_within_a_template_are_quoted_too():
    with pytest.raises(TemplateError, match=r"the chat template refuses the conversation: .*concatenate"):
        write_conversation(template("{{ 'a' + 1 }}"), make_exchange("a", "b"))


def test_a_conversation_without_learnt_turn_is_refused():
    with pytest.raises(TemplateError, match="no turn of it is learnt"):
        write_conversation(template(QWEN_2), Conversation((Message("user", "a"), Message("assistant", "b"))))


def test_a_learnt_turn_that_nothing_leads_to_is_refused():
    with pytest.raises(TemplateError, match="it begins with a learnt turn; put a question before it"):
        write_conversation(template(QWEN_2), Conversation((Message("assistant", "b", learnt=True),)))


def test_arguments_reach_the_template():
    messages = [{"role": "user", "content": "a"}]
    assert "Today is 1 May 2020\n" in render(template(LLAMA, date_string="1 May 2020"), messages, None)


def test_a_template_that_writes_the_date_is_refused_unless_it_is_given():
    with pytest.raises(TemplateError, match=r"'Today is \d\d \w{3} \d{4}'.*template_arguments: \{date_string: "):
        refuse_moving(template(LLAMA))
    refuse_moving(template(LLAMA, **DATED))


@pytest.mark.parametrize(
    "where", ["{% if tools %}DATE{% endif %}", "{% if messages[0].role == 'system' %}DATE{% endif %}"]
)
def test_a_date_that_is_written_at_times_is_found(where):
    with pytest.raises(TemplateError, match="writes the time of the run"):
        refuse_moving(template(where.replace("DATE", "{{ strftime_now('%Y') }}") + QWEN_2))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"llama"}))
def test_templates_without_a_date_stand_still(name):
    refuse_moving(template(FAMILIES[name]))


def test_a_clock_that_is_read_and_not_written_is_no_matter():
    refuse_moving(template("{% set year = strftime_now('%Y') | int %}" + QWEN_2))


def test_a_template_that_is_no_jinja_is_refused_with_its_fault():
    with pytest.raises(TemplateError, match=r"is not valid Jinja: .*end of template.* models\.chat_template: FILE"):
        refuse_moving(template("{% for turn in messages %}{{ turn.content }}"))


def test_delift_has_no_date():
    refuse_moving(Template(toy_tokenizer(), "delift"))


def test_an_unknown_template_is_refused():
    with pytest.raises(TemplateError, match="unknown template 'alpaca'; known: chat, delift"):
        check_template(Template(toy_tokenizer(), "alpaca"))


def test_a_tokenizer_without_chat_template_is_refused_with_both_ways_out():
    said = r"no chat template; set models\.chat_template: FILE .*, or models\.template: delift"
    with pytest.raises(TemplateError, match=said):
        check_template(Template(merging_tokenizer()))


def test_delift_needs_an_end_of_sequence_token():
    endless = toy_tokenizer()
    endless.eos_token = None
    with pytest.raises(TemplateError, match="no end-of-sequence token, which template delift needs"):
        check_template(Template(endless, "delift"))


def test_arguments_that_the_renderer_sets_are_refused():
    with pytest.raises(TemplateError, match="template_arguments names tokenize, tools, which the renderer sets itself"):
        check_template(template(QWEN_2, tools=[], tokenize=True, date_string="x"))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (LLAMA, {"reasoning"}),
        (QWEN_2, {"reasoning"}),
        (QWEN_3, {"tools", "tool_calls"}),
        (BARE, {"tools", "tool_calls", "reasoning"}),
        ("{% for turn in messages if turn.role in ('user', 'assistant') %}" + BARE.partition("%}")[2], set(LEFT_OUT)),
        (GEMMA, {"tools", "tool_calls", "reasoning"}),  # it refuses a system message, which leaves nothing out
    ],
    ids=["llama", "qwen_2", "qwen_3", "bare", "turns alone", "gemma"],
)
def test_what_a_template_leaves_out_without_a_word_is_found(text, kinds):
    assert find_left_out(template(text, **DATED)) == kinds


def test_delift_leaves_nothing_out():
    assert find_left_out(Template(toy_tokenizer(), "delift")) == frozenset()


def test_what_is_left_out_of_a_conversation_is_told_in_words():
    everything = frozenset(LEFT_OUT)
    assert list_left_out(make_exchange("Hi", "Hello"), everything) == []
    assert list_left_out(make_exchange("Hi", "Hello", "Be kind."), everything) == [LEFT_OUT["system"]]
    calling = Conversation(CALLING.messages, TOOLS)
    assert list_left_out(calling, everything) == [LEFT_OUT[kind] for kind in ("tools", "tool_calls", "tool")]
    assert list_left_out(calling, frozenset({"tools"})) == [LEFT_OUT["tools"]]
