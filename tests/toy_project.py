"""A small project's artifacts, for tests of the audit."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import toy_corpus

from tasks import audit, schemas
from tasks.artifacts import Provenance, digest_inputs, read_table, write_json, write_table

POOL, HELD_OUT = 6, 2
EXAMPLES, SUBSET = ("examples", "examples.parquet"), ("selection", "subset.parquet")
MADE_FROM = {
    "examples": [],
    "embedding": [EXAMPLES],
    "utility": [EXAMPLES, ("embedding", "embedding.parquet")],
    "selection": [EXAMPLES, ("utility", "utility.parquet")],
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
    subset: list[dict]
    evaluation: list[dict]

    def folder(self, stage: str, version: str = "v1") -> Path:
        """Return a stage's folder."""
        return self.root / f"data/{stage}/version={version}"

    def write(self, version: str = "v1") -> "World":
        """Write all artifacts, with their provenance."""
        tables = {
            "examples": ("examples", self.examples, schemas.EXAMPLES),
            "embedding": ("embedding", self.embedding, schemas.embedding(2)),
            "utility": ("utility", self.utility, schemas.UTILITY),
            "selection": ("subset", self.subset, schemas.SUBSET),
            "evaluation": ("evaluation", self.evaluation, schemas.EVALUATION),
        }
        for stage, (name, rows, schema) in tables.items():
            if stage == "evaluation":
                self.list_arms(version)
            sources = [self.folder(place, version) / file for place, file in MADE_FROM[stage]]
            inputs = digest_inputs(*sources) or {"raw/v1/toy.jsonl": "0"}
            table = pa.Table.from_pylist(rows, schema=schema)
            write_table(table, self.folder(stage, version) / f"{name}.parquet", Provenance(stage, version, {}, inputs))
        return self

    def list_arms(self, version: str) -> None:
        """Write finetuning.json."""
        sources = [self.folder(place, version) / file for place, file in MADE_FROM["finetuning"]]
        made = {"version": version, "inputs": digest_inputs(*sources), "arms": {}}
        write_json(made, self.folder("finetuning", version) / "finetuning.json")

    def check(self, **promises) -> pa.Table:
        """Run the audit and return its table."""
        asked = {"budget": {"count": 2}, "caps": {}, "floors": {}, "held_out_share": 0.05} | promises
        stages = {stage: self.folder(stage) for stage in ("examples", "utility", "selection", "evaluation")}
        audit.write_audit(**stages, out=self.folder("audit"), version="v1", **asked)
        return read_table(self.folder("audit") / "audit.parquet", schemas.AUDIT)


def make_world(root: Path) -> World:
    """A project in which every promise is kept: 6 rows in the pool, 2 chosen, 2 held out, 2 runs."""
    examples = [toy_corpus.row(place, "pool" if place < POOL else "held_out") for place in range(POOL + HELD_OUT)]
    ids = [row["id"] for row in examples]
    utility = [
        {"target_id": ids[target], "demo_id": ids[demo], "utility": (target - demo) / 10}
        for target in range(POOL)
        for demo in range(POOL)
    ]
    subset = [
        {name: row[name] for name in ("id", "topic", "response_tokens")}
        | {"chosen": place < 2, "rank": place if place < 2 else None, "covered_by": ids[0], "cover": 0.5}
        for place, row in enumerate(examples[:POOL])
    ]
    evaluation = [
        {name: row[name] for name in ("id", "topic", "response_tokens")}
        | {"arm": arm, "seed": seed, "loss": 1.0, "rouge_l": 0.5, "similarity": 0.5, "generated": "so"}
        for arm, seed in (("base", None), ("chosen", 0))
        for row in examples[POOL:]
    ]
    embedding = [{"id": name, "embedding": [1.0, 0.0]} for name in ids]
    return World(root, examples, embedding, utility, subset, evaluation)
