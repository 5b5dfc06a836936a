"""What a chat template writes for a conversation, and where in it the answers stand.

Symbols: messages[k] is a learnt turn; *before* is what the template writes for messages[:k] with the generation prompt,
which is what a model reads when it is asked; *after* is what it writes for messages[:k + 1]. The answer is what is in
after and not in before, up to the last character of its end-of-turn text that is no blank.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from tamis.examples.conversations import Conversation, as_messages, as_tools
from tamis.language.encoding import ControlTokens

NAMES = ("chat", "delift")
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
SYNTAX = "TemplateSyntaxError"  # what Jinja calls the fault of a text that is no template
QUOTED = 40  # characters of a text that an error shows
MARK = "sample9264"  # what is looked for in the text of a sample
LEFT_OUT = {  # kinds of content that a template may not write, and what is said of a row with it
    "system": "the template leaves out its system message",
    "tools": "the template leaves out its tools",
    "tool_calls": "the template leaves out its tool calls",
    "tool": "the template leaves out its tool answers",
    "reasoning": "the template leaves out its reasoning",
}
WAY_OUT = (
    "set models.chat_template: FILE, a template that writes earlier messages the same whatever follows them or that "
    "marks its answers with {% generation %}"
)
CLOCK = (  # stands before a template instead of the clock; the year ends with the digit, all else is the digit
    "{%- macro strftime_now(format) -%}{{ format | replace('%Y', '203DIGIT') | replace('%m', '0DIGIT') | "
    "replace('%d', '0DIGIT') | replace('%', 'DIGIT') }}{%- endmacro %}"
)


class TemplateError(ValueError):
    """A conversation cannot be written under a template, or what is written does not show where its answers stand.

    `place` is the index of the first conversation that shows it, None where no single one does.
    """

    def __init__(self, message: str, place: int | None = None) -> None:
        """Keep the message and the place."""
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, eq=False)
class Template:
    """How conversations are written for a model."""

    tokenizer: Any  # a Hugging Face tokenizer
    name: str = "chat"  # one of NAMES
    arguments: Mapping[str, Any] = field(default_factory=dict)  # what the chat template is given besides the messages

    @cached_property
    def control(self) -> ControlTokens:
        """Return the tokenizer's control tokens, whose texts inside messages are text."""
        return ControlTokens(self.tokenizer)


@dataclass(frozen=True)
class Written:
    """The text of one sequence, and where its answers stand."""

    text: str  # control tokens' texts of messages are hidden in it (`ControlTokens`)
    answers: tuple[tuple[int, int], ...]  # from which character to before which, in order
    messages: int  # how many of the conversation's messages are in it


def check_template(template: Template) -> None:
    """Refuse a template under which no conversation at all could be written.

    Raises:
        TemplateError: an unknown name; a tokenizer without chat template or, for delift, without end-of-sequence token;
            an argument that the renderer sets itself.
    """
    tokenizer = template.tokenizer
    if template.name not in NAMES:
        raise TemplateError(f"unknown template {template.name!r}; known: {', '.join(NAMES)}")
    if template.name == "delift":
        if not tokenizer.eos_token:
            raise TemplateError(
                "the tokenizer has no end-of-sequence token, which template delift needs; set one in it"
            )
        return
    if not tokenizer.chat_template:
        raise TemplateError(
            "the tokenizer has no chat template; set models.chat_template: FILE to give it one, or "
            "models.template: delift for rows of prompt and response"
        )
    own = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"documents"}
    if taken := sorted(own & set(template.arguments)):
        raise TemplateError(
            f"models.template_arguments names {', '.join(taken)}, which the renderer sets itself; name only what "
            "the chat template reads, like date_string or enable_thinking"
        )


def list_messages(template: Template, conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages as the chat template takes them, in which the texts of control tokens are hidden."""
    return template.control.hide(as_messages(conversation))


def list_tools(template: Template, conversation: Conversation) -> list[Any] | None:
    """Return the tools as the chat template takes them, likewise; None where there are none."""
    return template.control.hide(as_tools(conversation))


def list_turn_texts(template: Template) -> list[str]:
    """Return the texts of control tokens that a template opens and ends turns with.

    Those are the ones that the tokenizer has a role for, the end of a sequence for example, and the ones that the chat
    template names. Others, of file names in code for example, say nothing of turns.
    """
    tokenizer = template.tokenizer
    named = str(tokenizer.chat_template) if template.name == "chat" else ""
    return [text for text in template.control.texts if text in tokenizer.all_special_tokens or text in named]


def refuse_slow(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not tell which characters its tokens stand for.

    Raises:
        TemplateError: it is none of those with a tokenizer.json.
    """
    if not tokenizer.is_fast:
        raise TemplateError(
            f"the tokenizer {type(tokenizer).__name__} does not tell which characters its tokens stand for, without "
            "which answers cannot be placed; give the model's folder a tokenizer.json"
        )


def refuse_faults(faults: Sequence[str | None], what: str = "be written") -> None:
    """Refuse conversations of which some have a fault.

    Raises:
        TemplateError: their count, the first places and the first one's fault.
    """
    places = [place for place, fault in enumerate(faults) if fault]
    if places:
        raise TemplateError(
            f"{len(places)} of {len(faults)} conversations cannot {what}, first places {places[:3]}; "
            f"place {places[0]}: {faults[places[0]]}",
            places[0],
        )


def render(template: Template, messages: list[dict[str, Any]], tools: list[Any] | None, *, asked: bool = False) -> str:
    """Return the text of messages under the tokenizer's chat template; `asked` adds the generation prompt.

    Raises:
        TemplateError: the template raised; its words are quoted.
    """
    with _quoting(template):
        return template.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=asked, **template.arguments
        )


def write_conversation(template: Template, conversation: Conversation) -> list[Written]:
    """Return the sequences of a conversation as text: one, or one per learnt turn where a template rewrites turns.

    A template may write a turn otherwise once others follow it, for example without its reasoning. Such a turn would be
    learnt as it is never asked for, so that each learnt turn of the row then ends a sequence of its own.

    Raises:
        TemplateError: no turn is learnt, or one that nothing stands before; the template raised; an answer cannot be
            told from what stands before it; an answer ends with nothing.
    """
    if not conversation.learnt:
        raise TemplateError("no turn of it is learnt; mark an assistant's turn as learnt or leave it out")
    if not conversation.learnt[0]:
        raise TemplateError("it begins with a learnt turn; put a question before it")
    messages, tools = list_messages(template, conversation), list_tools(template, conversation)
    with _quoting(template):
        marked = MARKS.search(template.tokenizer.get_chat_template(None, tools))
    place = _place_marked if marked else _place_answer
    turns = [place(template, messages[: turn + 1], tools) for turn in conversation.learnt]
    last = turns[-1]
    whole = last.text if last.messages == len(messages) else render(template, messages, tools)
    if all(whole.startswith(one.text.rstrip()) for one in turns):
        return [Written(whole, tuple(span for one in turns for span in one.answers), len(messages))]
    return turns


def refuse_moving(template: Template) -> None:
    """Refuse a chat template that is none, or that writes the date: the same rows would have other tokens tomorrow.

    Short conversations with and without system message and tool are written by two clocks that differ in all they
    tell; no clock is read but by the template itself, for the line that the error quotes.

    Raises:
        TemplateError: the two texts differ; the template is no Jinja.
    """
    if template.name != "chat":
        return
    check_template(template)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    for messages in (turns, [{"role": "system", "content": "s"}, *turns]):
        for tools in (None, [tool]):
            line = _find_moving(template, messages, tools)
            if line is not None:
                raise TemplateError(
                    f"the chat template writes the time of the run ({_clip(template, line)}), by which the same rows "
                    "would have other tokens tomorrow; set models.template_arguments: {date_string: 26 Jul 2024}, or "
                    "the name that the template reads the date from, or set models.chat_template: FILE, a template "
                    "without it"
                )


def _find_moving(template: Template, messages: list[dict[str, Any]], tools: list[Any] | None) -> str | None:
    """Return the first line that depends on the clock; None where there is none or the messages cannot be written."""
    tokenizer = template.tokenizer
    try:
        with _quoting(template):
            own = tokenizer.get_chat_template(None, tools)
            early, late, now = (
                tokenizer.apply_chat_template(
                    messages, tools=tools, chat_template=text, tokenize=False, **template.arguments
                ).splitlines()
                for text in (CLOCK.replace("DIGIT", "1") + own, CLOCK.replace("DIGIT", "2") + own, own)
            )
    except TemplateError as fault:
        if type(fault.__cause__).__name__ == SYNTAX:
            raise
        return None
    changed = next((line for line, pair in enumerate(zip(early, late, strict=False)) if pair[0] != pair[1]), None)
    if changed is None:
        return None
    return now[changed] if changed < len(now) else early[changed]


def find_left_out(template: Template) -> frozenset[str]:
    """Return the keys of `LEFT_OUT` that a chat template does not write, tried with a sample of each.

    What it refuses is none of them: a row that has it cannot be written at all.
    """
    return frozenset(kind for kind in LEFT_OUT if template.name == "chat" and not _writes(template, kind))


def list_left_out(conversation: Conversation, kinds: frozenset[str]) -> list[str]:
    """Return what of a conversation a template leaves out that does not write these kinds of content, a clause each."""
    there = {one.role for one in conversation.messages} | ({"tools"} if conversation.tools else set())
    there |= {"tool_calls" for one in conversation.messages if '"tool_calls"' in one.details}
    there |= {"reasoning" for one in conversation.messages if '"reasoning_content"' in one.details}
    return [said for kind, said in LEFT_OUT.items() if kind in kinds & there]


def _writes(template: Template, kind: str) -> bool:
    """Return whether a template writes or refuses a sample in which `MARK` stands in one kind of content alone."""
    name = {key: MARK if key == kind else "sample" for key in LEFT_OUT}
    call = {"id": "123456789", "type": "function", "function": {"name": name["tool_calls"], "arguments": {}}}
    question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
    exchange = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "123456789", "name": "sample", "content": name["tool"]},
    ]
    messages = {
        "system": [{"role": "system", "content": MARK}, question, answer],
        "tools": [question, answer],
        "reasoning": [question, {**answer, "reasoning_content": MARK}],
    }.get(kind, [question, *exchange, answer])
    described = {"name": name["tools"], "description": "", "parameters": {"type": "object", "properties": {}}}
    tools = None if kind in ("system", "reasoning") else [{"type": "function", "function": described}]
    try:
        return MARK in render(template, messages, tools)
    except TemplateError:
        return True


def _place_answer(template: Template, messages: list[dict[str, Any]], tools: list[Any] | None) -> Written:
    """Write messages that end with an answer, which stands where the text goes on after the generation prompt."""
    before = render(template, messages[:-1], tools, asked=True)
    after = render(template, messages, tools)
    start = len(before)
    if not after.startswith(before):
        start = _find_content(template, messages, tools, before, after=after)
    stop = len(after.rstrip())
    _check_answer(template, after[start:stop], messages, WAY_OUT)
    return Written(after, ((start, stop),), len(messages))


def _find_content(
    template: Template, messages: list[dict[str, Any]], tools: list[Any] | None, before: str, *, after: str
) -> int:
    """Return where the content of the last message begins, in a template whose generation prompt says more than a turn.

    A generation prompt that opens a block of reasoning is no beginning of an answer without any. The answer then begins
    with its content, if nothing but a part of the generation prompt stands before it.
    """
    given = render(template, messages[:-1], tools)
    place = _count_common(before, after)
    content = messages[-1]["content"]
    if content.strip() and before.startswith(given) and after.startswith(given):
        for start in range(place, len(given) - 1, -1):  # texts may go on alike by chance after the generation prompt
            if after.startswith(content, start) or after.startswith(content.strip(), start):
                return start
    raise TemplateError(
        f"the chat template does not write message {len(messages) - 1} after its generation prompt: at character "
        f"{place} stands {_clip(template, before[place:])} without the answer and {_clip(template, after[place:])} "
        f"with it; {WAY_OUT}"
    )


def _place_marked(template: Template, messages: list[dict[str, Any]], tools: list[Any] | None) -> Written:
    """Write messages that end with an answer, which stands where the template's generation marks are."""
    after, marks = _render_marked(template, messages, tools)
    turns = sum(one["role"] == "assistant" for one in messages)
    # One mark per turn as a rule; else those of the last turn are the ones that come with it.
    earlier = turns - 1 if len(marks) == turns else len(_render_marked(template, messages[:-1], tools)[1])
    spans = tuple((start, stop) for start, stop in marks[earlier:] if start < stop)
    answer = "".join(after[start:stop] for start, stop in spans)
    way_out = "put it within the marks, in a template of your own: models.chat_template: FILE"
    _check_answer(template, answer, messages, way_out)
    return Written(after, spans, len(messages))


def _render_marked(
    template: Template, messages: list[dict[str, Any]], tools: list[Any] | None
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text, and from where to where each generation mark of the template holds it."""
    tokenizer = template.tokenizer
    with _quoting(template):
        texts, marks = render_jinja_template(
            conversations=[[{key: value for key, value in one.items() if value is not None} for one in messages]],
            tools=tools,
            chat_template=tokenizer.get_chat_template(None, tools),
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
            **{**tokenizer.special_tokens_map, **template.arguments},
        )
    return texts[0], marks[0]


def _check_answer(template: Template, answer: str, messages: list[dict[str, Any]], way_out: str) -> None:
    """Refuse an answer without the content or the tool calls of the last message, and one that never stops.

    A template may write a content otherwise, for example its reasoning apart: its last word must be there at least. Of
    a tool call its name must be.
    """
    content = messages[-1]["content"].strip()
    if not answer.strip() or any(word not in answer for word in content.split()[-1:]):
        raise TemplateError(
            f"the chat template does not hold the content of message {len(messages) - 1}, {_clip(template, content)}, "
            f"where its answer stands, {_clip(template, answer)}; {way_out}"
        )
    calls = [call.get("function") or call for call in messages[-1].get("tool_calls") or []]
    left_out = [name for name in (str(call.get("name", "")) for call in calls) if name not in answer]
    if left_out:
        raise TemplateError(
            f"the chat template does not write the tool call of message {len(messages) - 1}, "
            f"{_clip(template, left_out[0])}, so that a model would learn to say nothing in its place; "
            "set models.chat_template: FILE, a template that writes tool calls"
        )
    if content and content in answer and not answer.partition(content)[2].strip():
        raise TemplateError(
            f"the chat template ends an answer with nothing, after {_clip(template, content[-QUOTED:])}, so that a "
            "model would never learn to stop; set models.chat_template: FILE, a template that writes the end-of-turn "
            "token after every answer (within its {% generation %} marks, where it has them)"
        )


@contextmanager
def _quoting(template: Template) -> Iterator[None]:
    """Turn whatever a template raises, which is a program and may raise anything, into an error that quotes it."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == SYNTAX:
            raise TemplateError(
                f"the chat template is not valid Jinja: {error}; mend it, or name another: models.chat_template: FILE"
            ) from error
        said = template.control.show(str(error)) or type(error).__name__
        raise TemplateError(f"the chat template refuses the conversation: {said}") from error


def _count_common(one: str, other: str) -> int:
    """Return how many characters two texts have in common from their beginning on."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _clip(template: Template, text: str) -> str:
    """Return the beginning of a hidden text as an error shows it: quoted, control characters made visible."""
    return repr(template.control.show(text[:QUOTED]))
