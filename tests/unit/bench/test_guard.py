"""The guard of the network's speed: an evaluation must not become slower against what it is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlmir.bench.network import load_networks
from vlmir.bench.timing import in_turns, median_ratio
from vlmir.compute import REFERENCE
from vlmir.nn import UNet
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

MOST = 1.15
"""An evaluation that takes so many times as long as it did when this was written fails."""

USED_TO_TAKE = 1.22
"""Times of `tiny`'s convolutions and matrix products alone, in float32 on one processor, when this was written."""

SIDE = 128
ROUNDS = 9

SMALL = 700
"""Side of a picture of more than one tile."""

MOST_GROWTH = 1.25
"""Time per pixel may grow so much when the pixels are four times as many."""


def products_alone(unet: UNet, *arguments: Any) -> Callable[[], None]:
    """A function that makes the network's convolutions and linear layers, and nothing else."""
    calls = list[tuple[nn.Module, Tensor]]()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        calls.append((layer, inputs[0]))

    layers = [m for m in unet.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.inference_mode():
        unet(*arguments)
    for hook in hooks:
        hook.remove()

    @torch.inference_mode()
    def run() -> None:
        for layer, x in calls:
            layer(x)

    return run


def overhead(unet: UNet, slow: Callable[[], object] = lambda: None) -> float:
    """Time of an evaluation over that of its products alone, in turns; ``slow`` is done with each evaluation."""
    x = torch.rand(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    t = torch.tensor([100])
    with torch.inference_mode():
        conditioning = unet.prepare(None, None, None, 1)

    @torch.inference_mode()
    def evaluate() -> None:
        unet(x, x, t, conditioning)
        slow()

    ways = {"all": evaluate, "products": products_alone(unet, x, x, t, conditioning)}
    taken = in_turns(ways, rounds=ROUNDS, device=torch.device("cpu"), clock=time.process_time)
    return median_ratio(taken["all"], taken["products"])


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processor's time then is the time it takes, whatever else runs
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_an_evaluation_is_no_slower_than_it_was() -> None:
    unet = load_networks("tiny", REFERENCE).plain
    found = min(overhead(unet) for _ in range(3))
    assert found < MOST * USED_TO_TAKE, f"{found:.2f} times its products"


@pytest.mark.usefixtures("one_thread")
def test_the_guard_notices_a_fifth_more() -> None:
    unet = load_networks("tiny", REFERENCE).plain
    x = torch.rand(1, 3, SIDE, SIDE)
    seconds = statistics.median(
        in_turns(
            {"network": lambda: unet(x, x, torch.tensor([100]), unet.prepare(None, None, None, 1))},
            rounds=3,
            device=torch.device("cpu"),
            clock=time.process_time,
        )["network"]
    )

    def burn() -> None:
        end = time.process_time() + 0.35 * seconds
        while time.process_time() < end:
            pass

    assert overhead(unet, burn) > 1.15 * overhead(unet)


@pytest.mark.usefixtures("one_thread")
def test_time_is_linear_in_pixels() -> None:
    restorer = Restorer.load("tiny", device="cpu")

    def restore(side: int) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        restorer.restore(picture, RestoreOptions(degradation="noisy"))

    ways = {"small": partial(restore, SMALL), "big": partial(restore, 2 * SMALL)}
    taken = in_turns(ways, rounds=1, device=torch.device("cpu"), clock=time.process_time)
    assert taken["big"][0] < MOST_GROWTH * 4 * taken["small"][0]
