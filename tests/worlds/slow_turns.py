"""Conversations the slow way: a plain pass per learnt turn, of the text that the tokenizer's own template writes."""

from collections.abc import Sequence

import torch

from tamis.examples.conversations import Conversation, as_messages

Turn = tuple[list[int], list[int]]  # all tokens before an answer, and its own


def cut_turns(tokenizer, conversation: Conversation, demo: Conversation | None = None) -> list[Turn]:
    """Return each learnt turn as it is asked for and answered, after a demo that follows the system message."""
    messages = as_messages(conversation)
    head = [message for message in messages if message["role"] == "system"]
    shown = [message for message in as_messages(demo) if message["role"] != "system"] if demo else []
    found = []
    for place in conversation.learnt:
        turns = [*head, *shown, *messages[len(head) : place + 1]]
        before = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(turns, tokenize=False)
        assert after.startswith(before)
        answer = after[len(before) :].rstrip()
        found.append(tuple(tokenizer(text, add_special_tokens=False).input_ids for text in (before, answer)))
    return found


def cut_question(tokenizer, conversation: Conversation) -> list[int]:
    """Return all that stands before the last learnt turn."""
    return cut_turns(tokenizer, conversation)[-1][0]


def predict(network, turns: Sequence[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits that predict the answer tokens of some turns, a plain pass each, and these tokens."""
    logits, labels = [], []
    for before, answer in turns:
        found = network(input_ids=torch.tensor([before + answer]), use_cache=False).logits[0]
        logits.append(found[len(before) - 1 : -1])
        labels.append(torch.tensor(answer))
    return torch.cat(logits), torch.cat(labels)


def measure_loss(network, turns: Sequence[Turn]) -> torch.Tensor:
    """Return the mean negative log-likelihood over the answer tokens of some turns, nats."""
    return torch.nn.functional.cross_entropy(*predict(network, turns))


def measure_distance(network, turns: Sequence[Turn]) -> float:
    """Return the root mean square of 1 - p over the answer tokens of some turns."""
    with torch.no_grad():
        logits, labels = predict(network, turns)
    p = logits.double().softmax(-1)[torch.arange(len(labels)), labels]
    return float((1 - p).square().mean().sqrt())
