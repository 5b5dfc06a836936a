"""Chat templates that behave like those of known families of models, and a tokenizer with merges to try them with."""

import json

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding

MERGES = "h e|t he|i n|a n|o r|Ġ the|Ġ a|Ġ i|Ġ Ġ|ĠĠ ĠĠ|Ċ Ċ|Ċ Ġ|ĊĠ ĠĠ|l l|e r|y o|yo u|: Ċ|> Ċ|) Ċ|. Ċ|u s|us er|} Ċ"

# A date in the system block unless one is given; tools before the first question; texts without blanks at their ends.
LLAMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set rules = messages[0].content | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set rules = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- set day = date_string if date_string is defined else strftime_now('%d %b %Y') %}
{{- '<|head|>system<|body|>\\n\\nToday is ' + day + '\\n\\n' + rules + '<|eot|>' }}
{%- for turn in turns %}
    {{- '<|head|>' + turn.role + '<|body|>\\n\\n' }}
    {%- if tools and loop.first %}
        {%- if turn.role != 'user' %}{{ raise_exception('tools need a first question to stand in') }}{% endif %}
        {{- 'You may call one of these:\\n' }}
        {%- for tool in tools %}{{ tool | tojson }}{{ '\\n\\n' }}{% endfor %}
    {%- endif %}
    {%- for call in turn.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
    {{- (turn.content | trim) + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|body|>\\n\\n' }}{% endif %}
"""

# A system message of its own where a conversation has none, and tools after it.
QWEN_2 = """
{%- set given = messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + (messages[0].content if given else 'You are a patient helper.') }}
{%- if tools %}{{ '\\n\\nFunctions: ' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for turn in messages %}
    {%- if turn.role != 'system' %}
        {{- '<|im_start|>' + turn.role + '\\n' + turn.content }}
        {%- for call in turn.tool_calls or [] %}{{ '\\n' + (call.function | tojson) }}{% endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Reasoning is written for what comes after the last question alone, where the last answer has a block even without any.
QWEN_3 = """
{%- set place = namespace(question=-1) %}
{%- for turn in messages %}{% if turn.role == 'user' %}{% set place.question = loop.index0 %}{% endif %}{% endfor %}
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for turn in messages %}
    {%- if turn.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- set thought = turn.reasoning_content or '' %}
        {%- if loop.index0 > place.question and (thought or loop.last) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- turn.content + '<|im_end|>\\n' }}
    {%- elif turn.role != 'system' %}
        {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# The system message stands in the last question; questions and answers must take turns.
MISTRAL = """
{%- set rules = messages[0].content if messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if rules is not none else messages %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('questions and answers must take turns') }}
    {%- endif %}
    {%- if turn.role == 'user' %}
        {%- set final = turns[loop.index0 + 2:] | selectattr('role', 'equalto', 'user') | list | length == 0 %}
        {{- '[INST] ' + (rules + '\\n\\n' if rules is not none and final else '') + turn.content + '[/INST]' }}
    {%- else %}
        {{- ' ' + turn.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# An older one: the system message stands in the first question.
MISTRAL_FIRST = MISTRAL.replace(
    "{%- set final = turns[loop.index0 + 2:] | selectattr('role', 'equalto', 'user') | list | length == 0 %}",
    "{%- set final = loop.first %}",
)

# Tools stand before the last question, which is told by comparing messages.
MISTRAL_TOOLS = MISTRAL.replace(
    "{{- '[INST] '",
    "{%- if tools and turn == (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{{- '[TOOLS]' + (tools | tojson) }}{% endif %}{{- '[INST] '",
)

# No system message; an answer's role has another name; texts without blanks at their ends.
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('a system message has no place here') }}{% endif %}
{%- for turn in messages %}
    {%- set name = 'model' if turn.role == 'assistant' else turn.role %}
    {{- '<start_of_turn>' + name + '\\n' + (turn.content | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

# The generation prompt opens a block of reasoning, which a written answer does not have.
OPENED = QWEN_2.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}")

# Answers have marks; the generation prompt is not what stands before an answer.
MARKED = """
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' }}
    {%- if turn.role == 'assistant' %}
        {%- generation %}{{ turn.content + '<|im_end|>\\n' }}{% endgeneration %}
    {%- else %}{{ turn.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>bot: ' }}{% endif %}
"""

FAMILIES = {
    "llama": LLAMA,
    "qwen_2": QWEN_2,
    "qwen_3": QWEN_3,
    "mistral": MISTRAL,
    "mistral_first": MISTRAL_FIRST,
    "gemma": GEMMA,
    "opened": OPENED,
    "marked": MARKED,
}
ENDS = {"llama": "<|eot|>", "mistral": "</s>", "mistral_first": "</s>", "gemma": "<end_of_turn>"}  # else <|im_end|>
SPECIAL = (
    "<|head|> <|body|> <|eot|> <|im_start|> <|im_end|> <think> </think> [INST] [/INST] <start_of_turn> <end_of_turn>"
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


def merging_tokenizer(template: str | None = None, *, trim: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a few merges, some of them over blanks and line ends, and a chat template.

    With `trim` its offsets leave out the blanks at both ends of a token.
    """
    pairs = [tuple(pair.split(" ")) for pair in MERGES.split("|")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *("".join(pair) for pair in pairs)]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL.split(),
    )
    fast.chat_template = template
    return fast


def make_template(text: str = QWEN_2, *, trim: bool = False, **arguments) -> Template:
    """Return a chat template with the tokenizer with merges."""
    return Template(merging_tokenizer(text, trim=trim), arguments=arguments)


def list_sequences(encoding: Encoding) -> list[slice]:
    """Return where each sequence stands among the tokens."""
    return [slice(*pair) for pair in zip(encoding.starts[:-1], encoding.starts[1:], strict=True)]


def end_of_turn(family: str) -> str:
    """Return what ends an answer in a family, the line end within the marks included."""
    return "<|im_end|>\n" if family == "marked" else ENDS.get(family, "<|im_end|>")


BLANK = st.sampled_from(["", "", " ", "    ", "\n", "\n\n  "])
WORDS = st.lists(
    st.sampled_from(["the", "return", "  you", "in\n", "a:", "日本", "👍", "}", "é", "<b>", "INST"]), max_size=4
)


@st.composite
def random_conversations(draw, *, system: bool = True, reasoning: bool = True) -> Conversation:
    """Any conversation of one to three exchanges, with blanks at any end; the text of message k holds `mk.`."""
    asked = draw(st.booleans()) if system else False
    exchanges = draw(st.integers(1, 3))
    learnt = draw(st.lists(st.booleans(), min_size=exchanges, max_size=exchanges).filter(any))
    roles = ["system"] * asked + ["user", "assistant"] * exchanges
    messages = []
    for place, role in enumerate(roles):
        content = f"{draw(BLANK)}{' '.join([*draw(WORDS), f'm{place}.'])}{draw(BLANK)}"
        details = '{"reasoning_content": "so"}' if role == "assistant" and reasoning and draw(st.booleans()) else ""
        messages.append(Message(role, content, role == "assistant" and learnt[(place - asked) // 2], details))
    return Conversation(tuple(messages))
