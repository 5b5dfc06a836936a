"""Groups of conversations of several turns are scored as plain passes over each whole chat score them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds.chat_templates import CALL, MISTRAL, MISTRAL_TOOLS, QWEN_2, QWEN_3, TOOLS
from worlds.toy_corpus import row, tell, write_rows

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.packing import score_responses
from tamis.language.rendering import count_split, encode_conversations
from tasks import models
from tasks.utility.pool import read_pool
from tasks.utility.utility import _groups

MARKED = "{{- '<|system|>' }}"  # in the place of the beginning-of-sequence token, which the toy tokenizer lacks
TEMPLATES = {
    "mistral": MISTRAL.replace("{{- bos_token }}", MARKED),
    "mistral_tools": MISTRAL_TOOLS.replace("{{- bos_token }}", MARKED),
    "qwen_2": QWEN_2,
    "qwen_3": QWEN_3,
}


def chat(*texts: str, system: str = "", learnt: str = "", tools: str = "") -> Conversation:
    """Turns that begin with a question; of the answers those are learnt that stand in `learnt`, all without it."""
    roles = ["user", "assistant"] * len(texts)
    turns = [
        Message(role, text, role == "assistant" and (not learnt or text in learnt.split()))
        for role, text in zip(roles, texts, strict=False)
    ]
    return Conversation((*([Message("system", system)] if system else []), *turns), tools)


ROWS = [
    chat("one?", "1", "two?", "2", "three?", "3", system="Be brief."),
    chat("four?", "4", "  five?\n", "5"),
    chat("six?", "6", "seven?", "7", system="Be kind.", learnt="6"),
    make_exchange("eight?", "8", "Be brief."),
    chat("nine?", "9", "ten?", "10", "what ends?", "<|end|>", learnt="9 <|end|>"),
]
TOOLED = [chat("one?", "1", "two?", "2", system="S", tools=TOOLS), chat("two?", "2", "six?", "6", tools=TOOLS)]
REASONED = Conversation((Message("user", "a"), Message("assistant", "b", True, '{"reasoning_content": "so"}')))
CALLED = Conversation((Message("user", "a"), Message("assistant", "", True, CALL)), TOOLS)
MORE = {"mistral_tools": TOOLED, "qwen_2": [*TOOLED, CALLED], "qwen_3": [REASONED]}


@pytest.fixture(params=sorted(TEMPLATES))
def pool(request, tmp_path, toy):
    """The rows of a pool whose template is one of a family."""
    (tmp_path / "chat.jinja").write_text(TEMPLATES[request.param])
    model = replace(toy, chat_template=str(tmp_path / "chat.jinja"))
    rows = [*ROWS, *MORE.get(request.param, [])]
    write_rows(tmp_path, [row(place, "pool") | tell(one) for place, one in enumerate(rows)])
    return read_pool(tmp_path / "examples.parquet", request.param, model)


def show(demo: Conversation, target: Conversation) -> Conversation:
    """The target with the demo's turns as earlier ones, none of which is learnt.

    Its questions are numbered: a template that compares messages would take those for the last question that equal it.
    """
    system = [one for one in target.messages if one.role == "system"]
    shown = [replace(one, learnt=False) for one in demo.messages if one.role != "system"]
    shown = [replace(one, details='{"number": 1}') if one.role == "user" else one for one in shown]
    return Conversation((*system, *shown, *target.messages[len(system) :]), target.tools)


def score_plainly(network, template, conversation: Conversation) -> list[float]:
    """log p of each answer token, by a whole forward pass per sequence of the conversation."""
    found = []
    for sequence in encode_conversations(template, [conversation]).row(0):
        with torch.no_grad():
            logits = network(input_ids=torch.from_numpy(sequence.tokens.astype(np.int64))[None], use_cache=False).logits
        for place in np.flatnonzero(sequence.answers):
            found.append(float(logits[0, place - 1].log_softmax(-1)[sequence.tokens[place]]))
    return found


def test_groups_give_the_log_probabilities_of_whole_plain_passes(pool, toy):
    network = models.language_model(toy)
    places = range(len(pool.ids))
    members: dict[tuple[int, int], list[int]] = {}
    for demo in (-1, *places):
        for target in places:
            members.setdefault((int(pool.heads[target]), demo), []).append(target)
    scored = score_responses(network, _groups(pool, members), 400)
    for ((_, demo), targets), group in zip(members.items(), scored, strict=True):
        for target, found in zip(targets, group, strict=True):
            asked = pool.conversations[target]
            whole = show(pool.conversations[demo], asked) if demo >= 0 else asked
            wanted = score_plainly(network, pool.template, whole)
            assert found.tolist() == pytest.approx(wanted, abs=1e-4), (target, demo)


def test_rows_of_several_learnt_turns_are_split_where_the_template_rewrites_turns(pool, request):
    split = {"mistral": 1, "mistral_tools": 3, "qwen_2": 0, "qwen_3": 3}[request.node.callspec.params["pool"]]
    assert count_split(pool.encoding) == split


def test_rows_whose_system_message_stands_in_the_last_question_share_a_head(pool, request):
    family = request.node.callspec.params["pool"]
    heads = len(set(pool.heads.tolist()))
    assert heads == {"mistral": 1, "mistral_tools": 1, "qwen_2": 5, "qwen_3": 3}[family]
