"""Writes what a first version continues from: artifacts without rows, which stand in git. `python -m data.base`

Run it again when the schema of one of its tables changes; tests/tasks/examples/test_examples.py tells.
"""

from pathlib import Path

from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, write_table

HERE = Path(__file__).parent
TABLES = (
    ("examples", "examples", schemas.EXAMPLES),
    ("examples", "lingering", schemas.LINGERING),
    ("selection", "subset", schemas.SUBSET),
)


def write_base(data: Path) -> None:
    """Write the empty artifacts of the version `base` into a data folder."""
    for stage, name, schema in TABLES:
        path = data / stage / "version=base" / f"{name}.parquet"
        write_table(schema.empty_table(), path, Provenance(stage, "base"))
    arms = data / "finetuning/version=base/arms"
    arms.mkdir(parents=True, exist_ok=True)
    (arms / ".gitkeep").touch()


if __name__ == "__main__":
    write_base(HERE)
