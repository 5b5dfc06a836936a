"""Fixtures of the whole suite: shapes are checked, and a toy world stands in for the real models."""

import gc
import os
from pathlib import Path

# Two workers of pytest-xdist, and the children that they start, do not fight for cores; before any import of numpy.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

pytest_plugins = ["deprecations"]
hook = install_import_hook("tamis", "beartype.beartype")
hook.__enter__()
torch.set_num_threads(1)  # toy models are too small for more


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A folder with a two-layer random Llama and a byte-level tokenizer with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from worlds.toys import toy_tokenizer

    folder = tmp_path_factory.mktemp("toy")
    tokenizer = toy_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16_384,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def toy(toy_folder):
    """The toy world as a model choice."""
    from tasks.models import ModelChoice

    return ModelChoice(name=str(toy_folder), revision=None, device="cpu", dtype="float32", max_tokens=256)


def pytest_collection_finish() -> None:
    """Every training collects garbage, for which what was imported need not be looked at."""
    gc.collect()
    gc.freeze()
