"""A small run of the stage `gradients`, for its tests."""

import json
from dataclasses import replace

import torch

from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.gradients.gradients import write_gradients
from tasks.gradients.settings import GradientsSettings
from tasks.gradients.warmup import read_sets
from tasks.settings import RuntimeSettings
from worlds.places import find_folders
from worlds.token_rows import cut_pair

SMALL = GradientsSettings(
    order="second",
    learning_rate=1e-3,
    curvature="corrected",
    lambda_prior=0.5,
    warmup_share=0.5,
    warmup_steps=1,
    anchor_share=0.3,
    batch_rows=3,
)
SMALL_RUNTIME = RuntimeSettings(shard_rows=4, pack_tokens=120)
FIRST = replace(SMALL, order="first")


def run(
    folder, model, settings=SMALL, *, out="out", scratch="scratch", store="store", runtime=SMALL_RUNTIME, map=map, **by
):
    return write_gradients(
        find_folders(folder, gradients=folder / out, warmup=folder / scratch, cache=folder / store),
        model=model,
        settings=settings,
        runtime=runtime,
        map=map,
        **{"loss_per": "row", "selector": "dualsft", "mask_selector": "dualsft"} | by,
    )


def sets_of(folder, model, settings=SMALL):
    return read_sets.__wrapped__(folder / "examples/examples.parquet", "", model, settings)


def scored(folder) -> list[float]:
    return read_table(folder / "phi_data.parquet", schemas.PHI_DATA)["score"].to_pylist()


def told(folder) -> dict:
    return json.loads((folder / "gradients.json").read_text())


def content(folder) -> tuple[bytes, bytes]:
    return (folder / "phi_data.parquet").read_bytes(), (folder / "phi_param.safetensors").read_bytes()


def counted(facts) -> list[int]:
    return [facts[name] for name in ("rows_summed", "rows_scored", "shards")]


def logits_of(network, sets, place):
    """Return the logits that predict a row's response, and the response, by one plain pass."""
    before, answer = cut_pair(sets.encoding.row(place))
    logits = network(input_ids=torch.tensor([before + answer]), use_cache=False).logits[0]
    return logits[len(before) - 1 : -1], torch.tensor(answer)


def slow_gradient(network, loss):
    """Return a loss's gradient by parameter name, by autograd."""
    return dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, [*network.parameters()]), strict=True))
