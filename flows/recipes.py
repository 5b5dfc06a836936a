"""Recipes: settings that go together, one small file each in recipes/, merged into params.yaml with its comments kept.

A recipe holds sections of params.yaml, and of each the settings that it changes; a setting's value is replaced whole.
"""

import difflib
import itertools
from pathlib import Path

from flows import params
from flows.checks import ParamsError
from tasks.settings import hint

RECIPES = Path("recipes")
PARAMS = Path("params.yaml")


def list_recipes() -> dict[str, str]:
    """Return what each recipe is for, by its name: the lines of comment that it begins with."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))}
    return {name: " ".join(_read_head(text)) for name, text in found.items()}


def _read_head(text: str) -> list[str]:
    """Return the lines of comment that a text begins with."""
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line.removeprefix("#").strip() for line in head]


def merge(name: str) -> str:
    """Merge a recipe into params.yaml; return the difference, empty where there is none.

    Raises:
        ParamsError: no such recipe, or what it gives together with the rest cannot be used; nothing is written.
    """
    path = RECIPES / f"{name}.yaml"
    if name not in list_recipes():
        known = list_recipes()
        raise ParamsError(f"there is no recipe {name!r}{hint(name, known)}; known: {', '.join(known)}")
    before = PARAMS.read_text(encoding="utf-8")
    after = params.merge(before, path.read_text(encoding="utf-8"), str(path))
    if after != before:
        params.write(PARAMS, after)
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(*lines, "params.yaml before", f"with {path}", n=0))
