import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import plain_log_probs
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tamis.language import packing
from tamis.language.encoding import TokenSequence, join_rows, make_sequence
from tamis.language.packing import (
    Group,
    NonFiniteError,
    make_group,
    plan_packs,
    score_responses,
    score_rows,
    verify_packing,
)

WORDS = 64
tokens = st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=9)
turns = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3)
rows = st.lists(turns, min_size=1, max_size=2)
groups = st.lists(
    st.tuples(st.one_of(st.just([]), tokens), st.lists(rows, min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def model(toy_folder):
    return AutoModelForCausalLM.from_pretrained(toy_folder).eval()


def build(drawn) -> list[Group]:
    """Groups whose targets have one sequence or more, each of one answer or more."""
    return [Group(prefix, [[make_turns(turns) for turns in row] for row in targets]) for prefix, targets in drawn]


def make_turns(turns) -> TokenSequence:
    """A sequence of questions and answers in turn."""
    parts = [make_sequence(question, answer) for question, answer in turns]
    tokens, answers = (np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "answers"))
    return TokenSequence(tokens, answers)


def plain_row(model, prefix: list[int], row: list[TokenSequence]) -> list[float]:
    """Log-probabilities of a row's answer tokens, a whole pass for each of them."""
    found = []
    for sequence in row:
        for place in np.flatnonzero(sequence.answers):
            before = prefix + sequence.tokens[:place].tolist()
            found += plain_log_probs(model, before, [int(sequence.tokens[place])])
    return found


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=groups, pack_tokens=st.sampled_from([1, 16, 40, 4096]))
def test_packed_equals_plain_whatever_the_packing(model, drawn, pack_tokens):
    made = build(drawn)
    scores = score_responses(model, made, pack_tokens)
    for group, rows in zip(made, scores, strict=True):
        for target, row in zip(group.targets, rows, strict=True):
            assert row.tolist() == pytest.approx(plain_row(model, group.prefix, target), abs=2e-5)


@given(drawn=groups, pack_tokens=st.integers(1, 64))
def test_every_target_is_packed_once_and_positions_go_on_from_its_prefix(drawn, pack_tokens):
    made = build(drawn)
    seen = []
    for pack in plan_packs(made, pack_tokens):
        assert len(pack.tokens) <= pack_tokens or len(pack.members) == 1
        own = [span for span in pack.spans if not is_prefix(span, pack)]
        for (group, target, part), span in zip(pack.members, own, strict=True):
            seen.append((group, target, part))
            expected = made[group].targets[target][part].tokens.tolist()
            assert pack.tokens[span.start : span.start + span.length].tolist() == expected
            first = len(made[group].prefix)
            positions = pack.positions[span.start : span.start + span.length].tolist()
            assert positions == list(range(first, first + span.length))
            prefix = pack.tokens[span.prefix_start : span.prefix_start + span.prefix_length].tolist()
            assert prefix == made[group].prefix
    every = [(g, t, p) for g, group in enumerate(made) for t, row in enumerate(group.targets) for p in range(len(row))]
    assert sorted(seen) == every


def is_prefix(span, pack) -> bool:
    return not any(span.start <= each[0] < span.start + span.length for each in pack.predicting)


def test_the_same_call_gives_the_same_bits(model):
    made = [make_group([1, 2, 3], [[4, 5], [6]], [[7, 8], [9]])]
    first, second = (score_responses(model, made, 64) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))


def test_the_models_own_attention_is_back_afterwards(model):
    before = model.config._attn_implementation
    score_responses(model, [make_group([], [[1]], [[2]])], 64)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    "network",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4)),
        lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=WORDS,
                hidden_size=32,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                word_embed_proj_dim=32,
            )
        ),
        lambda: Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=WORDS,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        ),
    ],
    ids=["gpt2", "opt", "qwen2"],
)
def test_other_architectures_are_packed_exactly(network):
    torch.manual_seed(0)
    verify_packing(network().eval(), tolerance=1e-4)


def test_a_model_whose_attention_packs_do_not_offer_is_refused():
    config = Gemma2Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    with pytest.raises(ValueError, match="needs attention with softcap, which packs do not offer"):
        verify_packing(Gemma2ForCausalLM(config).eval())


def test_a_sliding_window_shorter_than_a_sequence_is_refused():
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 32}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads)).eval()
    verify_packing(model, tolerance=1e-4)
    with pytest.raises(ValueError, match="a sliding window of 32 tokens, shorter than a sequence here"):
        score_responses(model, [make_group([1] * 40, [[2]], [[3]])], 64)


def test_a_model_that_scales_its_logits_otherwise_is_refused(model, monkeypatch):
    class Scaled(torch.nn.Module):
        def forward(self, rows):
            return 2 * torch.nn.functional.linear(rows, model.lm_head.weight)

    monkeypatch.setattr(model, "get_output_embeddings", Scaled)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM scores differ by .* nats between packed and plain passes"):
        verify_packing(model)


def test_a_non_finite_score_names_group_and_target(toy_folder):
    broken = AutoModelForCausalLM.from_pretrained(toy_folder).eval()
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = float("nan")
    broken.lm_head.weight = torch.nn.Parameter(torch.ones_like(broken.lm_head.weight))
    made = [make_group([1], [[2]], [[3]]), make_group([1], [[2], [7]], [[3], [4]])]
    with pytest.raises(NonFiniteError, match="group 1, target 1: a log-probability is not finite"):
        score_responses(broken, made, 4)


@pytest.mark.parametrize(
    ("context", "answer", "fault"),
    [([], [1], "the answer has no token before it"), ([1], [], "no token is an answer's")],
)
def test_a_target_without_an_answer_or_a_token_before_it_is_refused(model, context, answer, fault):
    with pytest.raises(ValueError, match=f"group 0, target 0: {fault}"):
        score_responses(model, [make_group([1], [context], [answer])], 64)


def test_rows_with_different_heads_are_scored_each_after_its_own(model):
    heads = [[1, 2], [], [1, 2], [3]]
    rows = [[make_sequence([*head, 7, place], [8, 9])] for place, head in enumerate(heads, start=4)]
    scores = score_rows(model, join_rows(rows, [len(head) for head in heads]), 64)
    for row, score in zip(rows, scores, strict=True):
        assert score.tolist() == pytest.approx(plain_row(model, [], row), abs=2e-5)


def test_a_non_finite_score_of_rows_names_the_row(model, monkeypatch):
    rows = join_rows([[make_sequence([1, 4], [2])], [make_sequence([5], [2])], [make_sequence([1, 6], [2])]], [1, 0, 1])

    def fail(*_):
        raise NonFiniteError(0, 1)

    monkeypatch.setattr(packing, "score_responses", fail)
    with pytest.raises(NonFiniteError) as caught:
        packing.score_rows(model, rows, 64)
    assert caught.value.target == 2
