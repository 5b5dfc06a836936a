"""A few seconds of each kind of work on this machine, on made-up tokens: what a stage costs that has not run here yet.

The models are those that the stages use, and stay loaded for them.
"""

import time
from collections.abc import Callable

import torch
from transformers import GenerationConfig, PreTrainedModel

from tamis.language.embedding import encode_texts
from tamis.language.packing import Group, make_group, packed_attention, score_responses
from tamis.training.steps import lay_groups, response_loss
from tasks import models

TARGETS, QUERY, RESPONSE, PREFIX = 10, 24, 20, 40  # of the group that is scored: 480 tokens
TRAINED = 6  # of its targets, in a step that is trained
SAID, STEPS = 32, 6  # rows and tokens that are generated
TEXTS, WORDS = 48, 30  # that are encoded
SERIAL = 1.5  # times what work would take if every thread shared all of it
LEAST, MOST, LONGEST = 2, 4, 3.0  # tries of each kind of work; no further one is begun after so many seconds


def calibrate_language(choice: models.ModelChoice) -> dict[str, float]:
    """Return the seconds of loading the language model, and per token forward, forward and backward, and generated."""
    models.folder(choice)  # a GGUF file is converted once, which is no part of loading
    network, load = _timed(lambda: models.language_model(choice))
    group = make_probe(network)
    with models.multiplying(choice):
        forward = _fastest(lambda: score_responses(network, [group], 4096))
        backward = _fastest(lambda: _train(network, group))
        generated = _fastest(lambda: _generate(network, group))
    return {
        "load": load,
        "forward": forward / (PREFIX + TARGETS * (QUERY + RESPONSE)),
        "backward": backward / (PREFIX + TRAINED * (QUERY + RESPONSE)),
        "generated": generated / (SAID * STEPS),
    }


def calibrate_encoder(choice: models.ModelChoice) -> dict[str, float]:
    """Return the seconds per token of the text encoder."""
    network, tokenizer = models.embedder(choice), models.tokenizer(choice)
    texts = [" ".join(f"word{(place * step) % 97}" for step in range(WORDS)) for place in range(TEXTS)]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=choice.max_tokens).input_ids
    seconds = _fastest(lambda: encode_texts(network, tokenizer, texts, TEXTS, choice.max_tokens))
    return {"encoded": seconds / sum(map(len, tokens))}


def make_probe(network: PreTrainedModel) -> Group:
    """Return made-up tokens that the model knows."""
    words = network.get_input_embeddings().weight.shape[0]

    def make(length: int, salt: int) -> list[int]:
        return [(31 * step + 17 * salt + 5) % words for step in range(length)]

    queries = [make(QUERY, place) for place in range(TARGETS)]
    return make_group(make(PREFIX, 99), queries, [make(RESPONSE, place + TARGETS) for place in range(TARGETS)])


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    start, used = time.perf_counter(), time.process_time()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return found, time.perf_counter() - start
    return found, leave_out_waiting(time.perf_counter() - start, time.process_time() - used, torch.get_num_threads())


def leave_out_waiting(wall: float, used: float, threads: int) -> float:
    """Return the seconds that some work takes on a machine that does nothing else.

    Where other processes hold the cores, the wall's seconds tell of them. The processor's seconds over the threads are
    what the work takes at least, and `SERIAL` of that what it takes where not all of it runs on every thread.

    Args:
        wall: seconds that passed.
        used: seconds of all threads on a processor.
        threads: that the work may run on.

    >>> leave_out_waiting(2.0, 4.0, 2), leave_out_waiting(10.0, 4.0, 2)
    (2.0, 3.0)
    """
    return min(wall, SERIAL * used / threads)


def _fastest(work: Callable[[], object]) -> float:
    """Return the least seconds of a few tries, two at least: the first pass of a process takes many times longer."""
    tries: list[float] = []
    while len(tries) < LEAST or (len(tries) < MOST and sum(tries) < LONGEST):
        tries.append(_timed(work)[1])
    return min(tries)


def _train(network: PreTrainedModel, group: Group) -> None:
    """Run a step forward and backward to the embeddings; no weight gets a gradient, which would take their memory."""
    device = next(network.parameters()).device
    inputs = lay_groups([Group(group.prefix, group.targets[:TRAINED])], device)
    inputs = {name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in inputs.items()}
    labels = inputs.pop("labels")
    before = {name: weight.requires_grad for name, weight in network.named_parameters()}
    network.requires_grad_(False)
    network.enable_input_require_grads()
    try:
        with packed_attention(network):
            response_loss(network(**inputs, use_cache=False).logits, labels).backward()
    finally:
        network.disable_input_require_grads()
        for name, weight in network.named_parameters():
            weight.requires_grad_(before[name])


def _generate(network: PreTrainedModel, group: Group) -> None:
    """Continue some rows by so many tokens, however they might end."""
    ids = torch.tensor([group.prefix[:4]] * SAID, device=next(network.parameters()).device)
    how = GenerationConfig(do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS, pad_token_id=0, eos_token_id=0)
    with torch.inference_mode():
        network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)
