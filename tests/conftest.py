"""Fixtures of the whole suite: shapes are checked, and a toy world stands in for the real models."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Two workers of pytest-xdist, and the children that they start, do not fight for cores; before any import of numpy.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

pytest_plugins = ["deprecations"]
library = Path(__file__).parents[1] / "tamis"
shaped = [  # the modules with arrays: small functions of text are called a million times by the suite
    ".".join(path.relative_to(library.parent).with_suffix("").parts)
    for path in library.rglob("*.py")
    if "jaxtyping" in path.read_text(encoding="utf-8")
]
hook = install_import_hook(shaped, "beartype.beartype")
hook.__enter__()
settings.register_profile("shared", deadline=None)  # a machine that others use, too, says nothing of a test's speed
settings.load_profile("shared")
torch.set_num_threads(1)  # toy models are too small for more


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A folder with the toy model."""
    from worlds.made_once import make_once
    from worlds.toys import write_toy_model

    def make(folder: Path) -> None:
        write_toy_model(folder)

    return make_once(tmp_path_factory, "toy", make)[0]


@pytest.fixture
def toy(toy_folder):
    """The toy world as a model choice."""
    from tasks.models import ModelChoice

    return ModelChoice(name=str(toy_folder), revision=None, device="cpu", dtype="float32", max_tokens=256)


@pytest.fixture(scope="session", autouse=True)
def yaml_read_once() -> Iterator[None]:
    """Read each text of YAML once in this process."""
    from worlds.yaml_texts import remembered

    with remembered():
        yield


@pytest.fixture(scope="module", autouse=True)
def kept_apart() -> None:
    """Let collections of garbage, of which every training has some, look at what this module made alone.

    What is there before it, imported modules above all, would be gone through each time, for seconds late in a run.
    """
    gc.collect()
    gc.freeze()
