"""Shards for tests of who runs them: items that name a model, and what is done with them."""

import os
from types import SimpleNamespace


def make_items(count: int, model: str | None = "any") -> list[SimpleNamespace]:
    return [SimpleNamespace(model=model, number=number) for number in range(count)]


def tell_process(item) -> int:
    return os.getpid()


def tell_device(item) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def square(item) -> int:
    return item.number**2


def refuse(item) -> None:
    raise ValueError(f"item {item.number} is not finite; set models.dtype: float32")


def stumble(item) -> float:
    return 1 / (item.number - item.number)


def die(item) -> None:
    os._exit(9)


def halve(item: int) -> int:
    """Do what is short of memory."""
    from tamis.memory import Halving, add_halvings

    add_halvings([Halving("pack_tokens", 2048, 512 // item)])
    return item
