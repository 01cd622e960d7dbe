"""A small real sampler whose network calls can be watched and held, for the tests of the sampler service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.sampler.batcher import Batcher
from services.sampler.job import Sampled, Task
from services.sampler.model import load_model
from vlmir.bundle import load_bundle
from vlmir.compute import REFERENCE
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish

PATIENCE_S = 20.0
NOTHING = Conditions(None, None, None)


class Watched:
    """A sampler with a network that notes its calls, and waits before each while it is held."""

    def __init__(self, folder: Path) -> None:
        self.sampler: DiffusionSampler = load_model(load_bundle(folder), REFERENCE)
        self.calls: list[list[int]] = []
        """The time indices of each call's windows."""
        self.sizes: list[tuple[int, int]] = []
        """Height and width of each call's windows."""
        self.reached, self._open = threading.Semaphore(0), threading.Event()
        self._open.set()
        self.spoil: Callable[[Tensor, Tensor], Tensor] = lambda output, mu: output
        """Changes what the network says, or raises."""
        self._forward = self.sampler.unet.forward
        self.sampler.unet.forward = self._watch  # type: ignore[method-assign]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no network call through."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def _watch(self, x: Tensor, mu: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        self.calls.append(t.tolist())
        self.sizes.append((x.shape[2], x.shape[3]))
        self.reached.release()
        assert self._open.wait(PATIENCE_S)
        return self.spoil(self._forward(x, mu, t, conditioning), mu)


def plan(**changes: Any) -> Plan:
    chosen = {"steps": 5, "solver": "posterior", "realism": 1.0, "tile": None} | changes
    return Plan(**chosen)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> npt.NDArray[np.float32]:
    """Noise, 3×H×W, which nobody may write to."""
    pixels = np.random.default_rng(seed).random((3, height, width), np.float32)
    pixels.flags.writeable = False
    return pixels


def task(
    sampler: DiffusionSampler, *, size: tuple[int, int] = (40, 56), seed: int = 0, **changes: Any
) -> Task:
    f = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    return Task(
        sampler=sampler,
        pixels=picture(*size, seed),
        conditions=Conditions(*f) if seed % 2 else NOTHING,
        seed=seed,
        plan=plan(**changes),
    )


def alone(wanted: Task) -> npt.NDArray[np.float32]:
    """What the library makes of it, 3×H×W."""
    pixels = np.ascontiguousarray(wanted.pixels.transpose(1, 2, 0))
    run = wanted.sampler.sample([pixels], [wanted.conditions], [wanted.seed], wanted.plan)
    return finish(run)[0].transpose(2, 0, 1)


@contextmanager
def batching(
    *, active: int = 8, waiting: int = 8, pixels: int = 2**18, room: int = 10**6
) -> Iterator[Batcher]:
    batcher = Batcher(active=active, waiting=waiting, pixels=pixels, room=room)
    try:
        yield batcher
    finally:
        batcher.close()


async def sampled(batcher: Batcher, wanted: Task, **options: Any) -> npt.NDArray[np.float32]:
    async with aclosing(batcher.run(wanted, **options)) as events:
        *_, last = [event async for event in events]
    assert isinstance(last, Sampled)
    return last.pixels


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)
