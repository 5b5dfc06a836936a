"""The arms of a data version, trained on several devices at once.

    accelerate launch --num_processes 8 -m flows.train VERSION

Every process holds the model, passes its share of the rows of each optimiser step, and averages gradients with the
others: the loss curve is that of one process but for rounding. What comes out are finished arms, which the next
`tamis run` finds; no artifact is written here. Methods lora and full; a mask is trained on one device.
"""

import sys
from collections.abc import Sequence

from flows import model_records, params
from flows.graph.stages import needs
from flows.sharing import refuse_stale
from flows.stage import format_error, named, say
from flows.stage_calls import find_folders, language


def run(version: str) -> None:
    """Train the arms of a version together with the other processes of this launch.

    Raises:
        ValueError: as of stage finetuning; method masked; what the stage reads is not up to date.
    """
    from tasks.finetuning.finetuning import train_arms

    address, values = f"finetuning@{version}", params.read()
    with named(address):
        model_records.refuse_changed(vars(values.models), needs(address)[0])
        refuse_stale(address)
        train_arms(find_folders(values, version), model=language(values), settings=values.finetuning)


def main(arguments: Sequence[str]) -> int:
    """Run `VERSION`; an error is one message on stderr and exit status 1."""
    if len(arguments) != 1:
        print("usage: accelerate launch --num_processes N -m flows.train VERSION", file=sys.stderr)
        return 2
    try:
        run(*arguments)
    except (ValueError, OSError) as error:
        say(format_error(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
