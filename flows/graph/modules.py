"""Which modules of ours a stage imports, by `ast`, and dvc.yaml's lists of them.

    python -m flows.graph.modules      writes the lists anew (`make graph`)

DVC computes a stage again where a module that it imports has changed, so the lists must be whole; nobody writes them by
hand, and tests/test_house.py holds that writing them changes nothing.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OURS = ("tamis", "tasks")  # packages whose modules a stage depends on
GRAPH = Path("dvc.yaml")
MODULE = re.compile(r"^ +- (?:tamis|tasks)/\S+\.py$")


@cache
def parse(path: Path) -> ast.Module:
    """Return a source file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def list_imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of all that a file imports, anywhere in it; `from a import b` gives a and a.b."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"{path}:{node.lineno}: imports are absolute; write the package's name")
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def list_reached(path: Path, root: Path) -> set[Path]:
    """Return the files of `OURS` that a file imports, directly or not, and itself; files without code are left out."""
    seen, waiting = set(), {path}
    while waiting:
        one = waiting.pop()
        seen.add(one)
        waiting |= _find_ours(one, root) - seen
    return {one for one in seen if parse(one).body}


def list_modules(stage: str, root: Path) -> list[str]:
    """Return the paths of the modules that a stage imports, sorted, relative to the project's root."""
    reached = list_reached(root / f"tasks/{stage}/{stage}.py", root)
    return sorted(path.relative_to(root).as_posix() for path in reached)


def write_lists(text: str, root: Path) -> str:
    """Return dvc.yaml's text with each stage's modules listed after its other dependencies."""
    lines, stage, kept = text.splitlines(), "", []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if found := re.match(r"^  (\w+):$", line):
            stage = found[1]
        if not MODULE.match(line):
            kept.append(line)
        if _ends_deps(line, following):
            kept += [f"        - {path}" for path in list_modules(stage, root)]
    return "\n".join(kept) + "\n"


def _ends_deps(line: str, following: str) -> bool:
    """Return whether a line is the last of a stage's `deps`, which `params` follow."""
    return line.startswith("        - ") and following == "      params:"


def _find_ours(path: Path, root: Path) -> set[Path]:
    """Return the files of `OURS` that a file imports itself, with the files of their packages."""
    found = set()
    for name in list_imports(path):
        if name.partition(".")[0] in OURS:
            place = root / name.replace(".", "/")
            found |= {place.with_suffix(".py"), place / "__init__.py"}
            found |= {folder / "__init__.py" for folder in place.parents if folder != root and root in folder.parents}
    return {one for one in found if one.exists()}


if __name__ == "__main__":
    GRAPH.write_text(write_lists(GRAPH.read_text(encoding="utf-8"), Path(".")), encoding="utf-8")
