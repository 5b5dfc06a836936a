"""Where a stage finds what it reads, and puts what it writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Artifacts:
    """The folders of a data version's artifacts, one per stage, in the order of the flow."""

    version: str
    examples: Path
    embedding: Path
    utility: Path
    scores: Path
    gradients: Path
    selection: Path
    finetuning: Path
    evaluation: Path
    audit: Path


@dataclass(frozen=True)
class Folders:
    """What a stage is given to read and to write in."""

    here: Artifacts  # of the version that is made
    before: Artifacts  # of the version that it continues from; `base` has no rows and no arms
    raw: Path  # the version's raw files: a folder or one file
    cache: Path  # the stores, which runs and versions share
    scratch: Path  # checkpoints and finished arms, this version's own
    warmup: Path  # tensors of the rows that gradients draws, of one examples artifact
