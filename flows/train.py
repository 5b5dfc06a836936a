"""The arms of a data version, trained on several devices at once.

    accelerate launch --num_processes 8 -m flows.train VERSION

Every process holds the model, passes its share of the rows of each optimiser step, and averages gradients with the
others: the loss curve is that of one process but for rounding. What comes out are finished arms, which the next
`tamis run` finds; no artifact is written here. Methods lora and full; a mask is trained on one device.
"""

import sys
from collections.abc import Sequence
from functools import partial

from flows import model_records, params
from flows.graph.stages import needs
from flows.sharing import refuse_stale
from flows.stage import speak
from flows.stage_calls import find_folders, language


def run(version: str) -> None:
    """Train the arms of a version together with the other processes of this launch.

    Raises:
        ValueError: as of stage finetuning; method masked; what the stage reads is not up to date.
    """
    from tasks.finetuning.finetuning import train_arms

    address, values = name_stage(version), params.read()
    model_records.refuse_changed(vars(values.models), needs(address)[0])
    refuse_stale(address)
    train_arms(find_folders(values, version), model=language(values), settings=values.finetuning)


def name_stage(version: str) -> str:
    """Return the stage that a version's arms are of."""
    return f"finetuning@{version}"


def main(arguments: Sequence[str]) -> int:
    """Run `VERSION`; returns the exit status."""
    if len(arguments) != 1:
        print("usage: accelerate launch --num_processes N -m flows.train VERSION", file=sys.stderr)
        return 2
    return speak(name_stage(*arguments), partial(run, *arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
