"""Settings of the stage `utility`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UtilitySettings:
    """How pairs are chosen and scored."""

    template: str = "chat"  # chat | delift
    distance: str = "probability"  # probability | log_likelihood
    kernel: str = "neighbours"  # exact | neighbours | landmarks
    neighbours: int = 8  # demos per target, itself not counted
    landmarks: int = 64  # demos that are scored and may be chosen
    landmark_targets: int | None = None  # targets that landmarks are scored on; None: all
    check_targets: int = 4  # targets scored with every demo of the pool, to know the kernel's error
    seed: int = 0  # of the draw of these targets
    shard_pairs: int = 256  # pairs per part of the store
    pack_tokens: int = 2048  # tokens per forward pass
