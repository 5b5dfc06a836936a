"""Small random models of six families in float64, a made-up pool, and gradients of one example at a time."""

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

WORDS = 37
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "opt", "gemma")  # qwen3: norms by head


def wide_norm(self, x):
    """What Gemma's norm computes, in the dtype of its input: that of transformers rounds to float32."""
    return (1.0 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def widen(monkeypatch) -> None:
    """Let Gemma compute in float64 while a test lasts, so that 1e-8 can be asked for."""
    monkeypatch.setattr(GemmaRMSNorm, "forward", wide_norm)


def small_model(family: str, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Return a random model in eval mode; norms and biases are random, too."""
    torch.manual_seed(seed)
    model = _make(family, tied).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, dtype=torch.float64))
    return model.to(dtype)


def _make(family: str, tied: bool):
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=not tied, tie_word_embeddings=tied))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=tied))
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=6, tie_word_embeddings=tied))
    if family == "gemma":
        return GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=6, tie_word_embeddings=tied))
    if family == "gpt2":
        sizes = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4}
        ends = {"bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.3}
        return GPT2LMHeadModel(GPT2Config(**sizes, **ends, tie_word_embeddings=tied))
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=WORDS,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=8,
            init_std=0.3,
            pad_token_id=1,
            tie_word_embeddings=tied,
        )
    )


def small_pool(rows: int = 7) -> tuple[list[list[int]], list[list[int]]]:
    """Return queries and responses of different lengths; some hold the padding words 0 and 1."""
    queries = [[(5 * row + 3 * step) % WORDS for step in range(2 + row % 4)] for row in range(rows)]
    responses = [[(7 * row + 11 * step + 1) % WORDS for step in range(1 + (3 * row) % 5)] for row in range(rows)]
    return queries, responses


def random_direction(model, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return a random u for the trainable parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def loss_of(model, query: list[int], response: list[int]) -> torch.Tensor:
    """Mean negative log-likelihood of one response by one whole, unpadded pass."""
    logits = model(input_ids=torch.tensor([query + response]), use_cache=False).logits[0]
    total = 0.0
    for step, token in enumerate(response):
        total = total - logits[len(query) + step - 1].log_softmax(-1)[token]
    return total / len(response)


def each_gradient(model, queries, responses) -> list[dict[str, torch.Tensor]]:
    """The gradient of every example, one backward pass each."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        dict(zip(names, torch.autograd.grad(loss_of(model, query, response), weights), strict=True))
        for query, response in zip(queries, responses, strict=True)
    ]


def inner(one: dict, other: dict) -> float:
    """Return <one, other>, a parameter at a time."""
    return sum(float((one[name].double() * other[name].double()).sum()) for name in one)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference over the largest entry."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
