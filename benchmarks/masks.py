"""A mask over the layout of a 3-billion-parameter model, from random scores that are made a tensor at a time.

    python benchmarks/masks.py [--parameters 3e9] [--fraction 0.1]

The layout is that of a Llama of 28 layers, scaled in width to about so many parameters; a score is a uniform float32
in [-0.5, 0.5), from a seed and the tensor's place, made anew at every reading, so that no two tensors are in memory
together. Uniform numbers crowd the boundary bins, and come in 2^24 values: thresholds are tied. The mask of all tensors
is kept. Timed in a child process, whose peak memory is that of all it did.

`seconds` and `cpu_seconds` are those of the mask; making the scores is apart, in `making_*`. Limit: the bytes that must
be read and written are the scores, three times (bins, boundary bins, picking), and the indices; at the rate at which
one core reads a tensor (`numpy.max`) they take `limit_s`, and `limit_fraction` is that over our CPU seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from tamis.masks import topk

LAYERS = 28
WIDTH = 3072  # of a model of 3.2 billion parameters
FULL = 3.2e9
READS = 3


def main() -> None:
    """Run in a process of its own and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=FULL, help="about so many")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the parameters that is chosen")
    parser.add_argument("--here", action="store_true", help="in this process")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.parameters, asked.fraction)))
        return
    command = [sys.executable, __file__, "--here", f"--parameters={asked.parameters}", f"--fraction={asked.fraction}"]
    facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    say(f"{facts['parameters']} parameters: {facts['cpu_seconds']:.1f} CPU s, peak {facts['peak_gb']:.2f} GB")
    print(json.dumps(facts))


def measure(parameters: float, fraction: float) -> dict[str, float]:
    """Return the seconds of a mask, those of making its scores, and the peak memory of this process."""
    warm = layout(1e6)
    topk.choose(warm, Scores(warm).read, 1000)  # compiles
    shapes = layout(parameters)
    scores = Scores(shapes)
    entries = sum(int(np.prod(shape)) for shape in shapes.values())
    start = clocks()
    mask, cut = topk.choose(shapes, scores.read, topk.resolve({"fraction": fraction}, entries))
    whole = clocks() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    chosen = sum(len(indices) for indices in mask.values())
    own = whole - scores.spent
    moved = READS * 4 * entries + sum(indices.nbytes for indices in mask.values())
    limit = moved / read_rate()
    return {
        "seconds": own[0],
        "cpu_seconds": own[1],
        "peak_gb": peak,
        "parameters": entries,
        "chosen": chosen,
        "tensors": len(shapes),
        "largest_tensor_gb": 4 * max(int(np.prod(shape)) for shape in shapes.values()) / 1e9,
        "making_seconds": scores.spent[0],
        "making_cpu_seconds": scores.spent[1],
        "tie_share": cut.tie_share,
        "moved_gb": moved / 1e9,
        "limit_s": limit,
        "limit_fraction": limit / own[1],
    }


class Scores:
    """Random scores of a layout, and the seconds (wall, CPU) that making them took."""

    def __init__(self, shapes: topk.Shapes) -> None:
        self.shapes, self.spent = shapes, np.zeros(2)
        self.places = {name: place for place, name in enumerate(shapes)}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor's scores, the same ones at every call."""
        start = clocks()
        generator = np.random.Generator(np.random.SFC64([0, self.places[name]]))
        found = generator.random(int(np.prod(self.shapes[name])), dtype=np.float32)
        found -= 0.5
        self.spent += clocks() - start
        return found


def layout(parameters: float) -> topk.Shapes:
    """Return the shapes of a Llama of 28 layers with tied embeddings, of about so many parameters."""
    width = max(8, round(WIDTH * (parameters / FULL) ** 0.5 / 8) * 8)
    wide, narrow, words = round(width * 8 / 3 / 8) * 8, width // 3, round(128_256 * width / WIDTH)
    shapes = {"model.embed_tokens.weight": (words, width)}
    for layer in range(LAYERS):
        home = f"model.layers.{layer}"
        shapes |= {f"{home}.self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {f"{home}.self_attn.{name}_proj.weight": (narrow, width) for name in "kv"}
        shapes |= {f"{home}.mlp.{name}_proj.weight": (wide, width) for name in ("gate", "up")}
        shapes |= {f"{home}.mlp.down_proj.weight": (width, wide)}
        shapes |= {f"{home}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (width,)}


def read_rate() -> float:
    """Return how many bytes of a large tensor one core reads in a CPU second, at best."""
    tensor, seconds = np.ones(50_000_000, np.float32), []
    for _ in range(5):
        start = time.process_time()
        tensor.max()
        seconds.append(time.process_time() - start)
    return tensor.nbytes / min(seconds)


def clocks() -> np.ndarray:
    """Return wall and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def say(text: str) -> None:
    """Talk to the person who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
