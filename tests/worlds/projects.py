"""Projects in a folder of their own, and the two drivers; for tests/flows."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows import model_records
from flows.graph import dvc_files
from tasks.model_files import ModelError

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests/flows/small_graph"
KILLER = ROOT / "tests/flows/killer"


@dataclass(frozen=True)
class Change:
    """An edit of a file, and the stages that it makes stale."""

    path: str
    old: str
    new: str
    computed: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """What the scenarios do to a graph."""

    stages: tuple[str, ...]  # their names, in order
    late: Change  # of a parameter that only the last stages read
    failing: Change  # of a parameter with which a stage fails
    error: str  # what it then says
    shards: Change  # of a parameter that gives a stage four new shards
    store: str  # the parts of its shards
    comment: Change  # of a module of one stage
    version: Change  # adds the data version v2
    deleted: tuple[str, ...]  # an output in the middle, a final one, a metrics file
    tampered: str  # an output that a later stage reads
    killed: str  # where `late` is killed: an output's name
    revisited: str  # an output of v1 that is read by revision
    make: Callable[[Path, str], None]  # copies the project to a folder; takes the folder of the toy model, too

    def all(self, version: str = "v1") -> list[str]:
        """Return the addresses of a version's stages."""
        return [f"{stage}@{version}" for stage in self.stages]


@dataclass(frozen=True)
class Project:
    """A copy of a project, under git and DVC."""

    root: Path

    def apply(self, change: Change) -> None:
        """Make a change."""
        self.edit(change.path, change.old, change.new)

    def undo(self, change: Change) -> None:
        """Take a change back."""
        self.edit(change.path, change.new, change.old)

    def records(self) -> dict[str, str]:
        """Return what every stage says of its last run."""
        return {str(path): path.read_text() for path in sorted(self.root.glob("data/*/version=*/run.json"))}

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text in a file, once."""
        text = (self.root / path).read_text()
        assert old in text, f"{old!r} does not stand in {path}"
        (self.root / path).write_text(text.replace(old, new, 1))

    def git(self, *arguments: str) -> str:
        """Run git here."""
        return subprocess.run(
            ["git", *arguments], cwd=self.root, env=environment(), check=True, capture_output=True, text=True
        ).stdout

    def computed(self) -> list[str]:
        """Return the stages whose code has run, in order."""
        log = self.root / ".cache/computed.log"
        return log.read_text().split() if log.exists() else []

    def status(self) -> dict:
        """Return what `dvc status` finds."""
        from dvc.repo import Repo

        with contextlib.chdir(self.root), Repo(".") as repo:
            return {address.rpartition(":")[2]: found for address, found in repo.status().items()}

    def parts(self, store: str) -> dict[Path, int]:
        """Return the finished parts of a store outside DVC, and when each was written."""
        return {path: path.stat().st_mtime_ns for path in self.root.glob(store)}


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a child process: this Python first on the path, names for git, no user's settings."""
    folder = str(Path(sys.executable).parent)
    names = {f"GIT_{who}_{what}": "tamis" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**os.environ, **names, "PATH": f"{folder}:{os.environ['PATH']}", "GIT_CONFIG_GLOBAL": os.devnull, **more}


def enter(project: Project, patch: pytest.MonkeyPatch) -> None:
    """Make a project the current folder, and give git a name there."""
    patch.chdir(project.root)
    for name, value in environment().items():
        if name.startswith("GIT_"):
            patch.setenv(name, value)


def enter_copy(made: Project, folder: Path, patch: pytest.MonkeyPatch) -> Project:
    """Make a copy of a project the current folder, and give git a name there."""
    project = Project(Path(shutil.copytree(made.root, folder, symlinks=True)))
    enter(project, patch)
    return project


def start_project(root: Path) -> Project:
    """Put a copied folder under git and DVC."""
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    shutil.copy(ROOT / ".dvcignore", root)
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".gitignore").write_text("__pycache__/\n.cache/\n")
    prepare(root)
    project = Project(root)
    project.git("init", "--quiet")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "start")
    return project


def prepare(root: Path) -> None:
    """Do what every `tamis` command does first; of a model that is not there nothing is recorded."""
    dvc_files.write_copies(root)
    models = yaml.safe_load((root / "params.yaml").read_text()).get("models")
    with contextlib.chdir(root), contextlib.suppress(ModelError):
        if models:
            model_records.write(models)


def drive_by_flow(project: Project) -> list[str]:
    """Run the flow in this process; returns the stages that it computed."""
    from flows import pipeline

    with contextlib.chdir(project.root), importing_from(project.root):
        outcomes = pipeline.run(workers="2")
    return [outcome.address for outcome in outcomes if outcome.how == "computed"]


def drive_by_dvc(project: Project) -> list[str]:
    """Run `dvc repro`; returns the stages that it computed."""
    prepare(project.root)
    done = run_dvc(project, "repro")
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("Running stage '")]
    return [line.split("'")[1].rpartition(":")[2] for line in lines if "@" in line]  # `all` is of no version


DRIVERS: dict[str, Callable[[Project], list[str]]] = {"flow": drive_by_flow, "dvc": drive_by_dvc}


def run_stages(version: str, until: str = "audit") -> None:
    """Run a version's stages up to one, and what they need, as the flow does, but without Prefect, where we are."""
    from flows import stage
    from flows.graph import dvc_state

    for planned in dvc_state.plan([version]):
        found = dvc_state.probe(planned.address)
        if found.state == "stale":
            with dvc_state.claim(planned.address):
                stage.run(*planned.address.split("@"))
                dvc_state.record(planned.address, found.inputs)
        if planned.address == f"{until}@{version}":
            break
    dvc_state.record_whole()


def run_dvc(project: Project, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the dvc command, in a process group of its own."""
    return run_child([sys.executable, "-m", "dvc", *arguments], project, **more)


def run_child(command: list[str], project: Project, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project, in a process group of its own."""
    return subprocess.run(
        command, cwd=project.root, env=environment(**more), capture_output=True, text=True, start_new_session=True
    )


@contextlib.contextmanager
def importing_from(root: Path) -> Iterator[None]:
    """Import the package `small` from a project that has one, and forget it afterwards."""
    if not (root / "small").exists():
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "small"]:
            del sys.modules[name]


def copy_small(root: Path, model: str = "") -> None:
    """Copy the small graph."""
    shutil.copytree(SMALL, root, ignore=shutil.ignore_patterns("__pycache__"))


def copy_real(root: Path, model: str) -> None:
    """Copy the real graph, with the toy model and a corpus of a few short rows."""
    for folder in ("tasks", "tamis"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for artifacts in (ROOT / "data").glob("*/version=base"):
        shutil.copytree(artifacts, root / artifacts.relative_to(ROOT))
    shutil.copy(ROOT / "data/erased.json", root / "data")
    shutil.copy(ROOT / "dvc.yaml", root)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, changes in TOY.items():
        values[section] |= changes
    values["models"] |= {"language": model, "embedding": model}
    del values["versions"]["v2"]
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for version, rows in (("v1", 30), ("v2", 60)):
        (root / f"data/raw/{version}").mkdir(parents=True)
        lines = [json.dumps(toy_row(place)) + "\n" for place in range(rows)]
        (root / f"data/raw/{version}/toys.jsonl").write_text("".join(lines))


def toy_row(place: int) -> dict[str, str]:
    """Return the raw row at a place."""
    topic = ("sums", "letters", "greetings")[place % 3]
    return {"prompt": f"{topic} {place}?", "response": f"{place * place}" + "!" * (place % 3), "topic": topic}


TOY = {
    "models": {"device": "cpu", "max_tokens": 128},
    "examples": {"pool_rows": 20, "held_out_rows": 4},
    "utility": {"neighbours": 3, "check_targets": 2, "help_targets": 0},
    "selection": {"selector": "delift", "quality": "none", "gate": None},
    "finetuning": {"arms": {"chosen": [0], "random": [0], "full": [0]}, "epochs": 1, "lora_rank": 2, "lora_alpha": 4},
    "evaluation": {"new_tokens": 4, "bootstrap": 50, "demos": 1},
    "runtime": {"shard_pairs": 16},
}
VERSIONS = "v1: {raw: raw/v1.txt}"
GRAPHS = {
    "small": Graph(
        stages=("letters", "score", "choose", "total"),
        late=Change("params.yaml", "rows: 5", "rows: 6", ("choose@v1", "total@v1")),
        failing=Change("params.yaml", "rows: 5", "rows: 0", ("choose@v1", "total@v1")),
        error="0 rows are too few",
        shards=Change("params.yaml", "scale: 3", "scale: 4", ("score@v1", "choose@v1", "total@v1")),
        store=".cache/parts/*.txt",
        comment=Change("small/choose.py", '"""Keep', '# a comment\n"""Keep', ("choose@v1",)),
        version=Change("params.yaml", VERSIONS, VERSIONS + "\n  v2: {raw: raw/v2.txt}", ()),
        deleted=("score/version=v1/score.txt", "total/version=v1/all", "total/version=v1/total.json"),
        tampered="choose/version=v1/chosen.txt",
        killed="chosen.txt",
        revisited="score/version=v1/score.txt",
        make=copy_small,
    ),
    "real": Graph(
        stages=(
            "examples",
            "embedding",
            "utility",
            "scores",
            "gradients",
            "selection",
            "finetuning",
            "evaluation",
            "audit",
        ),
        late=Change("params.yaml", "bootstrap: 50", "bootstrap: 60", ("evaluation@v1", "audit@v1")),
        failing=Change(
            "params.yaml",
            "floors: {}",
            "floors: {sums: 999}",
            ("selection@v1", "finetuning@v1", "evaluation@v1", "audit@v1"),
        ),
        error="999",
        shards=Change(
            "params.yaml",
            "neighbours: 3",
            "neighbours: 6",
            ("utility@v1", "selection@v1", "finetuning@v1", "evaluation@v1", "audit@v1"),
        ),
        store=".cache/pairs/*/part-*.parquet",
        comment=Change("tasks/selection/selection.py", '"""', '# a comment\n"""', ("selection@v1",)),
        version=Change(
            "params.yaml", "previous: base", "previous: base\n  v2:\n    raw: data/raw/v2\n    previous: v1", ()
        ),
        deleted=(
            "utility/version=v1/utility.parquet",
            "audit/version=v1/audit.parquet",
            "evaluation/version=v1/metrics.json",
        ),
        tampered="selection/version=v1/subset.parquet",
        killed="metrics.json",
        revisited="selection/version=v1/subset.parquet",
        make=copy_real,
    ),
}
