"""The house keeps its rules, by `ast`: imports, sizes, one word per stage, dvc.yaml, the README's tree, papers.md."""

import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from flows.graph.modules import list_imports, list_modules, parse, write_lists
from flows.graph.stages import read_stages

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "docs/explanation/papers.md"
STAGES = ("examples", "embedding", "utility", "scores", "gradients", "selection", "finetuning", "evaluation", "audit")
SHARED = {
    "acceptance",
    "approvals",
    "artifacts",
    "browsing",
    "catalogue",
    "comparison",
    "conversations",
    "decisions",
    "differences",
    "erasure",
    "estimate",
    "export",
    "first_look",
    "folders",
    "masks",
    "model_files",
    "models",
    "scoring_model",
    "shares",
    "settings",
    "study",
    "tokens",
}  # for all
# What a stage needs of an earlier one, and of nobody else: re-scoring a mask is what gradients does, done again; the
# audit holds what was chosen against the settings by which it was to be chosen.
EARLIER = {"finetuning": {"gradients"}, "audit": {"examples", "selection"}}
STANDARD = set(__import__("sys").stdlib_module_names)

NUMBERS = {"numpy", "torch", "jaxtyping"}
TASKS_MAY = {
    "scipy",
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
FLOWS_MAY = {"prefect", "prefect_dask", "typer", "rich", "pydantic", "tasks", "flows"}
LOADERS_MAY = {*TASKS_MAY, "huggingface_hub"}

SUBJECTS = {path.name for path in (ROOT / "tamis").iterdir() if (path / "__init__.py").exists()}
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("tamis", "tasks", "flows")}
SOURCES = [path for paths in FILES.values() for path in paths]
CHECKED = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in list_imports(path)} - STANDARD


def allowed(path: Path) -> set[str]:
    """Return what a source file may import besides the standard library."""
    if path.is_relative_to(ROOT / "tamis"):
        more = {"transformers", "tokenizers"} if path.parent.name == "language" else set()
        more |= {"faiss"} if path == ROOT / "tamis/utility/neighbours.py" else set()  # inverted lists, in memory alone
        more |= {"bm25s"} if path == ROOT / "tamis/scores/bm25.py" else set()  # likewise, of words
        more |= {"accelerate"} if path == ROOT / "tamis/memory.py" else set()  # what says that memory is short
        return {*NUMBERS, "numba", "tamis", *more}
    if path.is_relative_to(ROOT / "tasks"):
        if path.stem == "settings":
            return {"pydantic", "tamis", "tasks"}
        return {"tamis", "tasks", *(LOADERS_MAY if path.stem in ("models", "model_files") else TASKS_MAY)}
    only = {
        "dvc_state": {"dvc", "scmrepo"},
        "revisions": {"dvc", "pygit2"},
        "dvc_locks": {"dvc", "dvc_data", "fsspec", "psutil", "voluptuous"},
        "prefect_server": {"psutil"},
        "dvc_files": {"ruamel"},
        "params": {"ruamel"},
        "pipeline": {"httpx"},
        "publishing": {"httpx"},
        "reports": {"httpx"},
        "landing": {"fsspec"},
        "mirror": {"fsspec"},
    }
    desk = {"streamlit", "altair", "pyarrow"} if ROOT / "flows/desk" in path.parents else set()
    lazily = {"tamis"} if path.stem == "stage" else set()
    return FLOWS_MAY | only.get(path.stem, set()) | desk | lazily


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path):
    assert packages(path) - allowed(path) == set()


@pytest.mark.parametrize("path", FILES["tasks"], ids=name_of)
def test_no_stage_imports_a_later_stage(path):
    stage = path.relative_to(ROOT).parts[1]
    asked = {name.split(".")[1] for name in list_imports(path) if name.startswith("tasks.")} & set(STAGES)
    assert stage not in STAGES or asked - {stage, *EARLIER.get(stage, ())} == set()


@pytest.mark.parametrize("path", FILES["tamis"], ids=name_of)
def test_library_touches_nothing_outside_its_arguments(path):
    assert not set(list_imports(path)) & {"os", "time", "datetime", "random"}
    for node in ast.walk(parse(path)):
        called = ast.unparse(node) if isinstance(node, ast.Call) else ""
        place = f"{name_of(path)}:{getattr(node, 'lineno', 0)}: {called}"
        assert not re.match(r"(open|print|input)\(", called), place
        assert not re.match(r"np\.random\.(?!default_rng\([^)]|Generator\b)", called), f"{place}: the global generator"
        assert not re.match(r"torch\.(manual_seed|rand\w*)\(", called) or "generator=" in called, place


@pytest.mark.parametrize("path", CHECKED, ids=name_of)
def test_files_have_at_most_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


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


@cache
def list_classes() -> set[str]:
    """Return the names of all classes of the sources."""
    return {node.name for source in SOURCES for node in ast.walk(parse(source)) if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_class_of_ours_is_a_base_class_but_errors(path):
    names = list_classes()
    for node in ast.walk(parse(path)):
        for base in node.bases if isinstance(node, ast.ClassDef) else []:
            said = ast.unparse(base)
            assert said not in names or said.endswith("Error"), f"{name_of(path)}: {node.name}({said})"


def graph() -> dict:
    return read_stages(ROOT)


def parameters() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_one_word_per_stage():
    assert tuple(graph()) == STAGES
    assert tuple(name for name in parameters() if name in STAGES) == STAGES
    places = {path.relative_to(ROOT).parts[1].removesuffix(".py") for path in FILES["tasks"]}
    assert places == {*STAGES, *SHARED, "__init__"}
    for path in [*FILES["tamis"], *(ROOT / f"tasks/{name}/{name}.py" for name in STAGES)]:
        mirror = ROOT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.name}")
        assert path.stem == "__init__" or mirror.exists(), name_of(path)


def test_folders_hold_at_most_eight_files_of_code():
    for folder in {path.parent for path in SOURCES} - {ROOT / name for name in FILES}:
        assert len([path for path in folder.glob("*.py") if parse(path).body]) <= 8, name_of(folder)


@pytest.mark.parametrize("subject", sorted(SUBJECTS))
def test_subjects_import_each_other_in_no_circle(subject):
    seen, waiting = set(), subjects_of(subject)
    while waiting:
        one = waiting.pop()
        seen.add(one)
        waiting |= subjects_of(one) - seen
    assert subject not in seen


def subjects_of(subject: str) -> set[str]:
    """Return the other subjects that a subject's modules import."""
    names = [name for path in (ROOT / "tamis" / subject).glob("*.py") for name in list_imports(path)]
    return ({name.split(".")[1] for name in names if name.startswith("tamis.")} & SUBJECTS) - {subject}


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_the_modules_that_the_stage_imports(name):
    listed = [dep for dep in graph()[name]["do"]["deps"] if dep.endswith(".py")]
    assert listed == list_modules(name, ROOT)
    assert f"tasks/{name}/{name}.py" in listed


def test_make_graph_changes_nothing():
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert write_lists(text, ROOT) == text
    assert write_lists(text.replace("        - tasks/models.py\n", ""), ROOT) == text


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_runs_a_stage_by_its_name_and_keeps_its_outputs_in_its_folder(name):
    entry = graph()[name]["do"]
    assert entry["cmd"] == f"python -m flows.stage {name} ${{key}}"
    outputs = [out if isinstance(out, str) else next(iter(out)) for out in outputs_of(entry)]
    assert {str(Path(out).parent) for out in outputs} == {f"data/{name}/version=${{key}}"}
    assert f"data/{name}/version=${{key}}/run.json" in entry["outs"]
    assert name in entry["params"]


def outputs_of(entry: dict) -> list:
    return [*entry["outs"], *entry.get("metrics", []), *entry.get("plots", [])]


def test_nothing_depends_on_run_json():
    assert not [dep for entry in graph().values() for dep in entry["do"]["deps"] if dep.endswith("run.json")]


def fenced_tree(text: str) -> list[str]:
    """Return the top-level names of the tree in a Markdown text: a fenced block with lines `├── name`."""
    (block,) = [block for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) if "├── " in block]
    return [line.split()[1].rstrip("/") for line in block.splitlines() if line.startswith(("├── ", "└── "))]


def test_the_trees_names_exist():
    names = fenced_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(names) > 8
    assert [name for name in names if not (ROOT / name).exists()] == []


def papers() -> list[list[str]]:
    """Return the cells of papers.md's table rows that name code: equation, functions, tests."""
    lines = PAPERS.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells for cells in rows if len(cells) >= 3 and "`" in cells[1]]


def test_every_function_in_papers_exists():
    named = [name for cells in papers() for name in re.findall(r"`([\w.]+)`", cells[1])]
    assert named
    for name in named:
        module, _, function = name.rpartition(".")
        paths = [ROOT / f"{folder}{module.replace('.', '/')}.py" for folder in ("", "tamis/")]
        defined = {
            node.name for path in paths if path.exists() for node in ast.walk(parse(path)) if hasattr(node, "name")
        }
        assert function in defined, f"papers.md names {name}"


def test_every_test_in_papers_exists():
    for cells in papers():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", cells[2])
        assert named, f"papers.md names no test for {cells[0]}"
        for path, test in named:
            assert (ROOT / path).exists(), f"papers.md names {path}"
            assert test in {function.name for function in functions(ROOT / path)}, f"papers.md names {path}::{test}"
