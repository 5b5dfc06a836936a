"""Loading of models: packages, local folders or hub names; safetensors or GGUF only, no remote code.

A GGUF file is converted once to a safetensors folder under `.cache/models` (loading it takes about 20 s each time).
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tamis.evaluation.costs import Size
from tasks.model_files import CACHE, ModelError, find_folder, hash_files, label, list_files, refuse_strange_index

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_keeping: list[Any] = []  # functions that keep models in memory


def kept(function: Callable[..., Any]) -> Any:
    """Keep what a function loaded last, a model or a part of one, until it loads another or `forget` is called."""
    keeping = lru_cache(maxsize=1)(function)
    _keeping.append(keeping)
    return keeping


def forget() -> None:
    """Let go of every model that this process keeps in memory."""
    for function in _keeping:
        function.cache_clear()


@dataclass(frozen=True)
class ModelChoice:
    """A model and how it is run."""

    name: str  # package:NAME, a local folder, or a hub name
    revision: str | None = None  # commit of a hub name
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "float32"  # float32 | bfloat16 | float16
    matmul: str = "float32"  # float32 | bf16: how products of float32 weights are computed on a CPU
    max_tokens: int = 2048  # longest sequence scored or trained
    template: str = "chat"  # chat | delift: how prompts are written
    template_arguments: str = "{}"  # JSON object: passed to the chat template
    chat_template: str | None = None  # file of a chat template; None: the tokenizer's own

    @property
    def label(self) -> str:
        """Return by what it is called in artifacts."""
        return label(self.name)


def device(choice: ModelChoice) -> torch.device:
    """Return the device to run on; `auto` takes CUDA where there is one."""
    if choice.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(choice.device)


def count_devices() -> int:
    """Return how many CUDA devices this process sees."""
    return torch.cuda.device_count()


def folder(choice: ModelChoice) -> Path:
    """Return a local folder with config, tokenizer and safetensors weights.

    Raises:
        ModelError: unknown package or folder; pickled weights; an index that names files which are not there; a hub
            name without a pinned revision.
    """
    found = find_folder(choice.name, choice.revision)
    weights = sorted(found.rglob("*.gguf"))
    if weights and not list(found.rglob("*.safetensors")):
        with _naming(weights[0], choice):
            return _convert(weights[0])
    holding = [path.parent for path in sorted(found.rglob("config.json")) if list(path.parent.glob("*.safetensors"))]
    if not holding:
        for place in sorted({path.parent for path in found.rglob("*.index.json")}):
            refuse_strange_index(place, choice.name)
        pickled = sorted(path.name for pattern in PICKLES for path in found.rglob(pattern))
        if pickled:
            raise ModelError(
                f"{choice.name} holds pickled weights only ({', '.join(pickled[:3])}), which can run code when "
                "they are loaded; convert them to safetensors with `save_pretrained` on a machine that you trust"
            )
        raise ModelError(f"{choice.name} holds no config.json with *.safetensors or *.gguf weights; check the folder")
    return holding[0]


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel with every layer's temporaries.

    Tensors of 5 to 30 MB otherwise come as fresh pages each time, and touching them takes about a fifth of a forward
    pass of a small model on a CPU. Without glibc nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def multiplying(choice: ModelChoice) -> Iterator[None]:
    """Let products of float32 matrices on a CPU be computed as `matmul` says, and afterwards as before.

    bf16: factors are rounded to bfloat16 and sums are float32, where the processor has units for that; elsewhere oneDNN
    computes the product in float32. It is a setting of the process: other threads have it, too, meanwhile.
    """
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    if choice.matmul == "bf16":
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def rounds_products(choice: ModelChoice) -> bool:
    """Return whether products of float32 matrices are rounded to bfloat16 under a choice, by trying one."""
    factor = torch.full((256, 256), 1 + 2**-10)  # 1 in bfloat16
    with multiplying(choice):
        return device(choice).type == "cpu" and float((factor @ torch.ones(256, 256))[0, 0]) == 256


def note_products(choice: ModelChoice) -> dict[str, bool]:
    """Return what a stage says of its products: nothing, or whether those asked for in bfloat16 were rounded here."""
    return {} if choice.matmul == "float32" else {"matmul_rounds": rounds_products(choice)}


@kept
def language_model(choice: ModelChoice) -> PreTrainedModel:
    """Return the causal language model in eval mode, on its device."""
    check_context(choice)
    keep_memory()
    return _load(AutoModelForCausalLM, choice).to(device(choice)).eval()


def skeleton(choice: ModelChoice) -> PreTrainedModel:
    """Return the causal language model without weights, on no device: parameters have names and shapes alone."""
    config = _read_config(choice)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


@lru_cache(maxsize=4)
def count_parameters(choice: ModelChoice, *, encoder: bool = False) -> Size:
    """Return the parameters that take part in a pass: all but embeddings, and apart from these the output head.

    Args:
        choice: the model.
        encoder: it is a text encoder, which has no head; else a causal language model.
    """
    config = _read_config(choice)
    with torch.device("meta"):
        made = (AutoModel if encoder else AutoModelForCausalLM).from_config(config, trust_remote_code=False)
    looked_up = [module for module in made.modules() if isinstance(module, torch.nn.Embedding)]
    head = None if encoder else made.get_output_embeddings()
    apart = {id(weight) for module in [*looked_up, *([head] if head else [])] for weight in module.parameters()}
    layers = sum(weight.numel() for weight in made.parameters() if id(weight) not in apart)
    return Size(layers, sum(weight.numel() for weight in head.parameters()) if head else 0)


@kept
def embedder(choice: ModelChoice) -> PreTrainedModel:
    """Return the text encoder in eval mode, on its device."""
    return _load(AutoModel, choice, encoder=True).to(device(choice)).eval()


def _read_config(choice: ModelChoice) -> PreTrainedConfig:
    place = folder(choice)
    with _naming(place / "config.json", choice):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


@contextmanager
def _naming(place: Path, choice: ModelChoice) -> Iterator[None]:
    """Name the file and the model in whatever transformers raises of files that are missing, cut off, or others."""
    try:
        yield
    except Exception as error:
        from accelerate.utils.memory import should_reduce_batch_size

        if isinstance(error, MemoryError | ModelError) or should_reduce_batch_size(error):
            raise  # the machine is short of memory; nothing is wrong with the files
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{place}, of {choice.name}, cannot be read: {said[:300]}; fetch or convert the model again"
        ) from error


def check_context(choice: ModelChoice) -> None:
    """Refuse to run a model beyond the positions that it was made for.

    Raises:
        ModelError: `max_tokens` is more than the model's context.
    """
    config = _read_config(choice)
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and choice.max_tokens > context:
        raise ModelError(
            f"{choice.name} has a context of {context} tokens and models.max_tokens is {choice.max_tokens}; lower it"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and reports, of reading weights, out of ours."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@lru_cache(maxsize=4)
def tokenizer(choice: ModelChoice) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, with a padding token (the end-of-sequence token where it has none)."""
    place = folder(choice)
    with _naming(place / "tokenizer.json", choice):
        loaded = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token
    if choice.chat_template is not None:
        loaded.chat_template = read_chat_template(choice.chat_template)
    return loaded


def read_chat_template(file: str) -> str:
    """Return the text of a chat template.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"models.chat_template is {file!r}, which cannot be read: {error}; give a file of Jinja text, "
            "or null for the tokenizer's own"
        ) from error


@lru_cache(maxsize=4)
def model_digest(choice: ModelChoice) -> str:
    """Return a digest of the model's weights, configuration, tokenizer, the dtype that it runs in, how its products are
    computed, and how its chat template is filled."""
    total = hashlib.sha256(choice.dtype.encode())
    if choice.matmul != "float32":
        total.update(choice.matmul.encode())
    if choice.template_arguments != "{}":
        total.update(choice.template_arguments.encode())
    if choice.chat_template is not None:
        total.update(read_chat_template(choice.chat_template).encode())
    files = [path for path in list_files(folder(choice)) if path.parent == folder(choice)]
    for path, content in hash_files(files).items():
        total.update(path.name.encode() + bytes.fromhex(content))
    return total.hexdigest()[:32]


def _load(kind: Any, choice: ModelChoice, *, encoder: bool = False) -> PreTrainedModel:
    """Return a model as its files have it, with no tensor made up.

    Args:
        kind: transformers' class.
        choice: the model.
        encoder: a text encoder, of whose checkpoint a head is left aside, and whose pooling layer is not used.

    Raises:
        ModelError: files that cannot be read, or that lack a tensor, have another one, or one of another shape.
    """
    place = folder(choice)
    refuse_strange_index(place, choice.name)
    asked = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # and refused below, by name
    options = _options(choice)
    with _naming(place, choice), quiet():
        model, told = kind.from_pretrained(place, **asked, **options)
    missing = {key for key in told["missing_keys"] if not (encoder and "pooler." in key)}
    unexpected = set() if encoder else set(told["unexpected_keys"])
    misshapen = {str(one[0] if isinstance(one, tuple) else one) for one in told["mismatched_keys"]}
    wrong = {"lack": missing, "hold, beside those of the model,": unexpected, "have, in another shape,": misshapen}
    for what, names in wrong.items():
        if names:
            raise ModelError(
                f"the weights of {choice.name} {what} {len(names)} tensors, first {', '.join(sorted(names)[:3])}; "
                "fetch or convert the model again: what its files do not give would be random numbers"
            )
    return model


def _options(choice: ModelChoice) -> dict:
    if choice.dtype not in DTYPES:
        raise ModelError(f"unknown dtype {choice.dtype!r}; known: {', '.join(DTYPES)}")
    return {"dtype": DTYPES[choice.dtype], "use_safetensors": True, "trust_remote_code": False}


def _convert(gguf: Path) -> Path:
    """Convert a GGUF file to a safetensors folder, once per content."""
    digest = hash_files([gguf])[gguf]
    target = CACHE / digest[:32]
    if (target / "model.safetensors").exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=CACHE, prefix=".converting-"))
    try:
        asked = {"gguf_file": gguf.name, "trust_remote_code": False}
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **asked)
            _forget_quantisation(model)
            model.save_pretrained(part, safe_serialization=True)
        AutoTokenizer.from_pretrained(gguf.parent, **asked).save_pretrained(part)
        (part / "source.json").write_text(json.dumps({"file": gguf.name, "sha256": digest}))
        if not (target / "model.safetensors").exists():  # another process may have been first
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Drop the record of the file's quantisation: the weights in memory are plain float32 and are saved as such."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
