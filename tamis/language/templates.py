"""Prompts as token segments: a prefix that may show demos, the query, the response.

A sequence is prefix + query + response. Segments are tokenised once per example and joined as ids, never once per pair;
they differ from tokenising the joined text only at the seams. A prefix that shows several demos is one segment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.language.encoding import Encoding, join_rows, make_sequence

TEMPLATES = ("chat", "delift")

DELIFT_BASE = "Instruction: Please generate a response to the following query.\n\n\nQuery: "
DELIFT_DEMO = (  # then the demo's prompt, a line end, its response, and DELIFT_QUERY
    "Instruction:\nUse the following example as a guide to answer the query in the same format and style, "
    "providing a clear and concise response.\n\n\nExample:\n"
)
DELIFT_MORE = "\n\n\nExample:\n"  # between demos
DELIFT_QUERY = "\n\n\nQuery:\n"


@dataclass(frozen=True)
class Segments:
    """The same as text, for one example."""

    base: str
    prefix: str
    query: str
    response: str


def join_instruction(instruction: str | None, prompt: str) -> str:
    """Return the text of a query: the instruction, where there is one, a blank line, the prompt.

    >>> join_instruction("Translate.", "chat")
    'Translate.\\n\\nchat'
    >>> join_instruction(None, "chat")
    'chat'
    """
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def encode(tokenizer: Any, template: str, prompts: Sequence[str], responses: Sequence[str]) -> Encoding:
    """Tokenise examples under a template, each once.

    **Source**: `delift` is the wording of DELIFT's published code (agarwalishika/DELIFT @ b282b9f); `chat` shows the
    demo as an earlier user and assistant turn of the tokenizer's chat template. Differs: segments are tokenised apart.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: `chat` or `delift`.
        prompts: queries, with their instruction (`join_instruction`).
        responses: reference answers, one per prompt.

    Returns:
        The ids; a response ends with the end-of-turn token, which counts among its tokens.

    Raises:
        ValueError: unknown template; no chat template; a tokenizer without end-of-sequence token; an empty response.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses; give one response per prompt")
    empty = [place for place, response in enumerate(responses) if not response.strip()]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(responses)} responses are empty, first places {empty[:3]}; "
            "an empty response has no distance: remove these examples or set examples.on_bad_row: reject"
        )
    segments = _renderer(tokenizer, template)
    texts = [segments(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    base = _start(tokenizer) + _ids(tokenizer, [segments("x", "y").base])[0]
    queries = _ids(tokenizer, [text.query for text in texts])
    answers = _ids(tokenizer, [text.response for text in texts])
    rows = [[make_sequence(base + query, answer)] for query, answer in zip(queries, answers, strict=True)]
    return join_rows(rows, [len(base)] * len(rows))


def encode_demos(tokenizer: Any, template: str, demos: Sequence[tuple[str, str]]) -> list[int]:
    """Return the prefix that shows some examples in the order given, the last one next to the query.

    No demo gives the head. `chat` shows each as earlier turns;
    `delift` puts the published wording once and every further example under a heading `Example:` of its own.

    **Source**: the in-context learner of DELIFT's published code (agarwalishika/DELIFT @ 1612186, `inference_icl.py`).
    Differs: that numbers the examples, most similar first, and writes no instruction.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: `chat` or `delift`.
        demos: prompt, with its instruction, and response of each.

    Raises:
        ValueError: as `encode`.
    """
    segments = _renderer(tokenizer, template)
    text = segments("x", "y").base
    if template == "delift" and demos:
        shown = DELIFT_MORE.join(f"{prompt}\n{response}" for prompt, response in demos)
        text = f"{DELIFT_DEMO}{shown}{DELIFT_QUERY}"
    elif demos:
        turns = [segments(prompt, response) for prompt, response in demos]
        text += "".join(turn.prefix.removeprefix(turn.base) for turn in turns)
    return _start(tokenizer) + _ids(tokenizer, [text])[0]


def count_overhead(tokenizer: Any, template: str) -> int:
    """Return how many tokens a template adds to those of prompt and response, the end-of-turn token not counted."""
    own = sum(map(len, _ids(tokenizer, ["x", "y"])))
    return int(encode(tokenizer, template, ["x"], ["y"]).sizes[0]) - own - 1


def _renderer(tokenizer: Any, template: str) -> Callable[[str, str], Segments]:
    if template == "delift":
        if not tokenizer.eos_token:
            raise ValueError("the tokenizer has no end-of-sequence token, which template delift needs; set one in it")
        return lambda prompt, response: _render_delift(prompt, response, tokenizer.eos_token)
    if template != "chat":
        raise ValueError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set models.template: delift")
    return lambda prompt, response: _render_chat(tokenizer, prompt, response)


def _render_delift(prompt: str, response: str, eos: str) -> Segments:
    demo = f"{DELIFT_DEMO}{prompt}\n{response}{DELIFT_QUERY}"
    return Segments(base=DELIFT_BASE, prefix=demo, query=f"{prompt}\n{eos}", response=response + eos)


def _render_chat(tokenizer: Any, prompt: str, response: str) -> Segments:
    """Cut one chat into segments; the template must render earlier turns the same whatever follows them."""
    user, assistant = {"role": "user", "content": prompt}, {"role": "assistant", "content": response}

    def render(*turns: dict[str, str], answer: bool = False) -> str:
        return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=answer)

    prefix = render(user, assistant)
    query = render(user, assistant, user, answer=True).removeprefix(prefix)
    alone = render(user, answer=True)
    base = alone.removesuffix(query)
    end = prefix.removeprefix(base + query + response)
    if len(base) + len(query) != len(alone) or base + query + response + end != prefix or not prefix.startswith(base):
        raise ValueError(
            "the chat template renders a turn differently when others stand before or after it "
            f"(prompt {prompt[:40]!r}); set models.template: delift"
        )
    return Segments(base=base, prefix=prefix, query=query, response=response + (end.strip() or tokenizer.eos_token))


def _start(tokenizer: Any) -> list[int]:
    """Return the beginning-of-sequence id where the tokenizer puts one before any text by itself."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False).input_ids if texts else []
