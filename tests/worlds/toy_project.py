"""A small project's artifacts, for tests of the audit."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import safetensors.numpy

from tamis.masks import topk
from tamis.masks.tensor_layout import locate
from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, digest_inputs, read_table, write_json, write_table
from tasks.audit import audit
from tasks.audit.settings import AuditSettings
from tasks.folders import Artifacts
from tasks.masks import mask_tables
from tasks.masks.settings import MaskSettings
from tasks.selection.settings import SelectionSettings
from worlds import toy_corpus
from worlds.places import STAGES, find_folders

POOL, HELD_OUT = 6, 2
EXAMPLES, SUBSET = ("examples", "examples.parquet"), ("selection", "subset.parquet")
NO_MASK = MaskSettings(selector="none")
MADE_FROM = {
    "embedding": [EXAMPLES],
    "utility": [EXAMPLES, ("embedding", "embedding.parquet")],
    "scores": [EXAMPLES],
    "gradients": [EXAMPLES],
    "selection": [
        EXAMPLES,
        ("utility", "utility.parquet"),
        ("scores", "scores.parquet"),
        ("gradients", "phi_data.parquet"),
    ],
    "finetuning": [EXAMPLES, SUBSET],
    "evaluation": [EXAMPLES, ("finetuning", "finetuning.json")],
}


@dataclass(frozen=True)
class World:
    """The rows of a project's artifacts, to be altered before they are written."""

    root: Path
    examples: list[dict]
    embedding: list[dict]
    utility: list[dict]
    scores: list[dict]
    subset: list[dict]
    evaluation: list[dict]
    before: list[dict]  # examples of the version before
    withdrawn: list[dict]  # of these, what is here no more
    phi_data: list[dict]
    mask: dict[str, list[int]] = field(default_factory=dict)  # flat indices by tensor
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of all tensors
    previous: str = "base"  # the version before
    lingering: list[dict] = field(default_factory=list)  # what earlier versions learnt, and the one before lacks, too

    def folder(self, stage: str, version: str = "v1") -> Path:
        """Return a stage's folder."""
        return self.root / f"data/{stage}/version={version}"

    def write(self, version: str = "v1") -> "World":
        """Write all artifacts, with their provenance, and those of the version before that they were made from."""
        earlier = self.write_before()
        for stage, (name, rows, schema) in self.tables().items():
            if stage == "evaluation":
                self.list_arms(version)
            made_from = [self.folder(place, version) / file for place, file in MADE_FROM.get(stage, [])]
            inputs = digest_inputs(*made_from) or {"raw/v1/toy.jsonl": "0"} | earlier
            self.write_rows(rows, schema, self.folder(stage, version) / f"{name}.parquet", inputs)
        self.write_mask(version)
        gone = self.folder("examples", version) / "withdrawn.parquet"
        self.write_rows(self.withdrawn, schemas.WITHDRAWN, gone, {"raw/v1/toy.jsonl": "0"} | earlier)
        left = self.folder("examples", version) / "lingering.parquet"
        learnt = [linger(row, version) for row in self.withdrawn if row["earlier"] == "learnt"]
        self.write_rows([*self.lingering, *learnt], schemas.LINGERING, left, {"raw/v1/toy.jsonl": "0"} | earlier)
        return self

    def tables(self) -> dict[str, tuple[str, list[dict], pa.Schema]]:
        """Return the name, rows and schema of each stage's table."""
        return {
            "examples": ("examples", self.examples, schemas.EXAMPLES),
            "embedding": ("embedding", self.embedding, schemas.embedding(2)),
            "utility": ("utility", self.utility, schemas.UTILITY),
            "scores": ("scores", self.scores, schemas.SCORES),
            "gradients": ("phi_data", self.phi_data, schemas.PHI_DATA),
            "selection": ("subset", self.subset, schemas.SUBSET),
            "evaluation": ("evaluation", self.evaluation, schemas.EVALUATION),
        }

    def write_mask(self, version: str) -> None:
        """Write phi_param.safetensors, without tensors, and from it mask.parquet and tensors.parquet."""
        source = self.folder("examples", version) / "examples.parquet"
        phi_param = self.folder("gradients", version) / "phi_param.safetensors"
        made = {"stage": "gradients", "version": version, "parameters": {}, "inputs": digest_inputs(source)}
        safetensors.numpy.save_file({}, phi_param, {"tamis": json.dumps(made)})
        cut = topk.Cut(self.shapes, {name: len(self.mask.get(name, [])) for name in self.shapes}, {}, False, 0, 0, 0)
        rows = [row for name, flat in self.mask.items() for row in tabulate_mask(name, flat, self.shapes[name])]
        tables = {
            "mask": (rows, schemas.MASK),
            "tensors": (mask_tables.tabulate_tensors(cut, {}).to_pylist(), schemas.TENSORS),
        }
        for name, (table, schema) in tables.items():
            path = self.folder("selection", version) / f"{name}.parquet"
            self.write_rows(table, schema, path, digest_inputs(source, phi_param))

    def write_before(self) -> dict[str, str]:
        """Write examples and subset of the version before, and return their digests."""
        tables = {
            "examples/examples": (self.before, schemas.EXAMPLES),
            "examples/lingering": (self.lingering, schemas.LINGERING),
            "selection/subset": ([], schemas.SUBSET),
        }
        paths = []
        for name, (rows, schema) in tables.items():
            stage, file = name.split("/")
            paths.append(self.folder(stage, self.previous) / f"{file}.parquet")
            self.write_rows(rows, schema, paths[-1], {})
        return digest_inputs(*paths)

    def write_rows(self, rows: list[dict], schema: pa.Schema, path: Path, inputs: dict[str, str]) -> None:
        """Write an artifact; its path tells stage and version."""
        stage, version = path.parts[-3], path.parts[-2].removeprefix("version=")
        write_table(pa.Table.from_pylist(rows, schema=schema), path, Provenance(stage, version, {}, inputs))

    def list_arms(self, version: str) -> None:
        """Write finetuning.json."""
        sources = [self.folder(place, version) / file for place, file in MADE_FROM["finetuning"]]
        made = {"version": version, "inputs": digest_inputs(*sources), "arms": {}}
        write_json(made, self.folder("finetuning", version) / "finetuning.json")

    def check(
        self,
        *,
        held_out_share: float = 0.05,
        mask: MaskSettings = NO_MASK,
        raw: Path | None = None,
        decisions: Path | None = None,
        **promises,
    ) -> pa.Table:
        """Run the audit, with other settings of the selection where there are some, and return its table."""
        asked = {
            "selection_settings": SelectionSettings(**{"budget": {"count": 2}} | promises),
            "mask": mask,
            "settings": AuditSettings(held_out_share=held_out_share),
            "decisions": decisions,
        }
        here, before = ({stage: self.folder(stage, version) for stage in STAGES} for version in ("v1", self.previous))
        places = {"before": Artifacts(self.previous, **before), "raw": raw or self.root / "data/raw/v1"}
        audit.write_audit(find_folders(self.root, **places, **here), **asked)
        return read_table(self.folder("audit") / "audit.parquet", schemas.AUDIT)

    def found(self, check: str) -> list[str]:
        """Return what audit.json says of a check."""
        return json.loads((self.folder("audit") / "audit.json").read_text())[check]


def make_world(root: Path) -> World:
    """A project in which every promise is kept: 6 rows in the pool, 2 chosen, 2 held out, 2 runs."""
    examples = [toy_corpus.row(place, "pool" if place < POOL else "held_out") for place in range(POOL + HELD_OUT)]
    ids = [row["id"] for row in examples]
    utility = [
        {"target_id": ids[target], "demo_id": ids[demo], "utility": (target - demo) / 10, "kernel": True}
        for target in range(POOL)
        for demo in range(POOL)
    ]
    subset = [
        {name: row[name] for name in ("id", "topic", "response_tokens")}
        | {"chosen": place < 2, "rank": place + 1 if place < 2 else None, "covered_by": ids[0], "cover": 0.5}
        | {"gated": False}
        for place, row in enumerate(examples[:POOL])
    ]
    evaluation = [
        answer(row, arm, learner, seed)
        for arm, learner, seed in (("base", "none", None), ("chosen", "finetuning", 0))
        for row in examples[POOL:]
    ]
    embedding = [{"id": name, "embedding": [1.0, 0.0]} for name in ids]
    scores = [{"id": name, "score": float(place)} for place, name in enumerate(ids[:POOL])]
    phi_data = [
        {"id": name, "score": 1.0 - place, "norm": 2.0, "per_norm": 0.5 - place / 2, "loss": 1.0, "order": "second"}
        for place, name in enumerate(ids[: POOL - 1])
    ]
    return World(root, examples, embedding, utility, scores, subset, evaluation, [], [], phi_data)


def tabulate_mask(name: str, flat: list[int], shape: tuple[int, int]) -> list[dict]:
    """Return the rows of a matrix's mask."""
    layer, module = locate(name)
    rows: dict[int, list[int]] = {}
    for place in flat:
        rows.setdefault(place // shape[1], []).append(place % shape[1])
    common = {"tensor": name, "layer": layer, "module": module, "least": 0.5, "mean": 0.75, "largest": 1.0}
    return [common | {"row": row, "columns": columns, "chosen": len(columns)} for row, columns in rows.items()]


def answer(row: dict, arm: str, learner: str, seed: int | None, held_out_of: str = "v1") -> dict:
    """Return what a run said on a held-out row."""
    found = {name: row[name] for name in ("id", "topic", "response_tokens")}
    found |= {"arm": arm, "learner": learner, "seed": seed, "held_out_of": held_out_of}
    return found | {"loss": 1.0, "rouge_l": 0.5, "similarity": 0.5, "cut": False, "generated": "so"}


def linger(row: dict, version: str) -> dict:
    """Return a row that was learnt, and that a version is the first to lack."""
    kept = {"id": row["id"], "topic": row["topic"], "edited_to": row.get("edited_to")}
    return kept | {"asked": row["prompt"].casefold(), "gone_since": version}


def withdraw(row: dict, edited_to: str | None = None) -> dict:
    """Return a row of the version before as one that is here no more."""
    names = ("id", "topic", "prompt", "response", "split", "earlier")
    return {name: row.get(name) for name in names} | {"edited_to": edited_to}
