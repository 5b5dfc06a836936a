"""The house keeps its rules, by `ast`: imports, sizes, one word per room, dvc.yaml, the README's tree, PAPERS.md."""

import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = ("examples", "embedding", "utility", "scores", "gradients", "selection", "finetuning", "evaluation", "audit")
HELPERS = {
    "artifacts",
    "schemas",
    "models",
    "pairstore",
    "rawfiles",
    "trainer",
    "questions",
    "store",
    "comparison",
    "warmup",
    "scorer",
    "groundwork",
    "masking",
    "runs",
    "sandbox",
    "verdicts",
    "deltas",
    "rescoring",
    "similarities",
    "tensorfiles",
}
STANDARD = set(__import__("sys").stdlib_module_names)

NUMBERS = {"numpy", "torch", "jaxtyping"}
ROOMS_MAY = {
    *NUMBERS,
    "pyarrow",
    "duckdb",
    "datasets",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "rouge_score",
    "matplotlib",
}
FLOWS_MAY = {"prefect", "prefect_dask", "typer", "rich", "tasks", "flows"}
LOADERS_MAY = {*ROOMS_MAY, "huggingface_hub"}

FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("tamis", "tasks", "flows")}
SOURCES = [path for paths in FILES.values() for path in paths]
CHECKED = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names of all that a file imports, anywhere in it; `from a import b` gives a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)} - STANDARD


def ours(path: Path) -> set[Path]:
    """Return the files of tasks/ and tamis/ that a file imports itself, with the packages' own files."""
    found = set()
    for name in imported(path):
        place = ROOT / name.replace(".", "/")
        if name.partition(".")[0] in ("tasks", "tamis"):
            found |= {place.with_suffix(".py"), place / "__init__.py", place.parent / "__init__.py"}
    return {one for one in found if one.exists() and one.parent.name in ("tasks", "tamis")}


def reached(path: Path) -> set[Path]:
    """Return the files of tasks/ and tamis/ that a file imports, directly or not, but for empty ones."""
    seen, waiting = set(), {path}
    while waiting:
        one = waiting.pop()
        seen.add(one)
        waiting |= ours(one) - seen
    return {one for one in seen if tree(one).body}


def allowed(path: Path) -> set[str]:
    """Return what a source file may import besides the standard library."""
    if path.parent.name == "tamis":
        more = {"transformers"} if path.stem == "language_model" else set()
        return {*NUMBERS, "numba", "tamis", *more}
    if path.parent.name == "tasks":
        return {"tamis", "tasks", *(LOADERS_MAY if path.stem == "models" else ROOMS_MAY)}
    only = {"dvcstate": {"dvc"}, "params": {"yaml"}}
    lazily = {"tamis"} if path.stem == "stage" else set()
    return FLOWS_MAY | only.get(path.stem, set()) | lazily


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path):
    assert packages(path) - allowed(path) == set()


@pytest.mark.parametrize("path", FILES["tasks"], ids=name_of)
def test_no_room_imports_another_room(path):
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("tasks.")} & set(STAGES)
    assert rooms - {path.stem} == set()


@pytest.mark.parametrize("path", FILES["tamis"], ids=name_of)
def test_library_touches_nothing_outside_its_arguments(path):
    assert not set(imported(path)) & {"os", "time", "datetime", "random"}
    for node in ast.walk(tree(path)):
        called = ast.unparse(node) if isinstance(node, ast.Call) else ""
        place = f"{name_of(path)}:{getattr(node, 'lineno', 0)}: {called}"
        assert not re.match(r"(open|print|input)\(", called), place
        assert not re.match(r"np\.random\.(?!default_rng\([^)]|Generator\b)", called), f"{place}: the global generator"
        assert not re.match(r"torch\.(manual_seed|rand\w*)\(", called) or "generator=" in called, place


@pytest.mark.parametrize("path", CHECKED, ids=name_of)
def test_files_have_at_most_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef) -> int:
    """Return a function's lines from `def` on, its docstring not counted."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    return lines - (function.body[0].end_lineno - function.body[0].lineno + 1)


@pytest.mark.parametrize("path", CHECKED, ids=name_of)
def test_functions_are_short_and_take_few_positional_arguments(path):
    for function in functions(path):
        place = f"{name_of(path)}:{function.lineno}: {function.name}"
        assert body_lines(function) <= 40, place
        fixtures = path.is_relative_to(ROOT / "tests")
        assert fixtures or len(function.args.posonlyargs + function.args.args) <= 5, place


def test_half_of_the_functions_have_at_most_ten_lines():
    assert statistics.median(body_lines(function) for path in SOURCES for function in functions(path)) <= 10


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_class_of_ours_is_a_base_class_but_errors(path):
    names = {node.name for source in SOURCES for node in ast.walk(tree(source)) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree(path)):
        for base in node.bases if isinstance(node, ast.ClassDef) else []:
            said = ast.unparse(base)
            assert said not in names or said.endswith("Error"), f"{name_of(path)}: {node.name}({said})"


def graph() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def parameters() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_one_word_per_room():
    assert tuple(graph()) == STAGES
    assert tuple(name for name in parameters() if name in STAGES) == STAGES
    assert {path.stem for path in FILES["tasks"]} == {*STAGES, *HELPERS, "__init__"}
    for name in STAGES:
        assert (ROOT / f"tests/tasks/test_{name}.py").exists()
    for path in FILES["tamis"]:
        assert path.stem == "__init__" or (ROOT / f"tests/tamis/test_{path.stem}.py").exists(), name_of(path)


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_the_modules_that_the_room_imports(name):
    listed = {dep for dep in graph()[name]["do"]["deps"] if dep.endswith(".py")}
    assert listed == {name_of(path) for path in reached(ROOT / f"tasks/{name}.py")}


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_runs_a_stage_by_its_name_and_keeps_its_outputs_in_its_folder(name):
    entry = graph()[name]["do"]
    assert entry["cmd"] == f"python -m flows.stage {name} ${{key}}"
    outputs = [out if isinstance(out, str) else next(iter(out)) for out in outputs_of(entry)]
    assert {str(Path(out).parent) for out in outputs} == {f"data/{name}/version=${{key}}"}
    assert f"data/{name}/version=${{key}}/run.json" in entry["outs"]
    assert name in entry["params"] or name == "audit"


def outputs_of(entry: dict) -> list:
    return [*entry["outs"], *entry.get("metrics", []), *entry.get("plots", [])]


def test_nothing_depends_on_run_json():
    assert not [dep for entry in graph().values() for dep in entry["do"]["deps"] if dep.endswith("run.json")]


def test_profiles_hold_what_dvc_yaml_tracks():
    from flows.params import TRACKED

    tracked = [name for name in STAGES if f"profiles.${{profile}}.{name}" in graph()[name]["do"]["params"]]
    assert tuple(tracked) == TRACKED
    assert all(tuple(sections) == TRACKED for sections in parameters()["profiles"].values())


def fenced_tree(text: str) -> list[str]:
    """Return the top-level names of the tree in a Markdown text: a fenced block with lines `├── name`."""
    (block,) = [block for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) if "├── " in block]
    return [line.split()[1].rstrip("/") for line in block.splitlines() if line.startswith(("├── ", "└── "))]


def test_the_trees_names_exist():
    names = fenced_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(names) > 8
    assert [name for name in names if not (ROOT / name).exists()] == []


def papers() -> list[list[str]]:
    """Return the cells of PAPERS.md's table rows that name code: equation, functions, tests."""
    lines = (ROOT / "PAPERS.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells for cells in rows if len(cells) >= 3 and "`" in cells[1]]


def test_every_function_in_papers_exists():
    named = [name for cells in papers() for name in re.findall(r"`([\w.]+)`", cells[1])]
    assert named
    for name in named:
        module, _, function = name.rpartition(".")
        paths = [ROOT / f"{folder}{module.replace('.', '/')}.py" for folder in ("", "tamis/")]
        defined = {
            node.name for path in paths if path.exists() for node in ast.walk(tree(path)) if hasattr(node, "name")
        }
        assert function in defined, f"PAPERS.md names {name}"


def test_every_test_in_papers_exists():
    for cells in papers():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", cells[2])
        assert named, f"PAPERS.md names no test for {cells[0]}"
        for path, test in named:
            assert (ROOT / path).exists(), f"PAPERS.md names {path}"
            assert test in {function.name for function in functions(ROOT / path)}, f"PAPERS.md names {path}::{test}"
