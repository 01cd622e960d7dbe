"""One picture on its way through the batcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.common.wire import thinned
from vlmir.nn import UNet
from vlmir.sampling import Conditions, DiffusionSampler, PictureRun, Plan, SampleStep
from vlmir.sweeps import Evaluation, Sweep, padded

__all__ = ["Event", "Job", "Key", "Sampled", "Task"]

Key: TypeAlias = tuple[UNet, int, int]
"""What evaluations in one network call have in common: the network, and the window's padded height and width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A picture to be sampled."""

    sampler: DiffusionSampler
    """The network to do it with, to the end, whatever is served meanwhile."""
    pixels: npt.NDArray[np.float32]
    """Low-quality pixels, 3×H×W, 0…1; only read."""
    conditions: Conditions
    seed: int
    plan: Plan

    @property
    def size(self) -> int:
        """Pixels of the picture."""
        _, height, width = self.pixels.shape
        return int(height * width)

    @cached_property
    def cost(self) -> int:
        """Pixels that the network will read in all."""
        _, height, width = self.pixels.shape
        return self.sampler.cost(height, width, self.plan)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """A task done."""

    pixels: npt.NDArray[np.float32]
    """Restored pixels, 3×H×W, 0…1."""
    milliseconds: dict[str, float]
    """``wait``: until it was begun; ``sample``: from then on, shared with others."""


_MOST_UNREAD = 64 * 2**20
"""Bytes of previews that may wait for their reader, where there is more than one of them."""

Event: TypeAlias = SampleStep | Sampled | Exception


class Job:
    """A task under way. The batcher's thread alone uses it, but for ``gone`` and ``read``.

    Args:
        task: What to do.
        post: Hands an event to whoever waits for it.
        previews: Whether x̂₀ is wanted after each whole evaluation.
    """

    def __init__(self, task: Task, post: Callable[[Event], None], *, previews: bool) -> None:
        self.task, self.post = task, post
        self.gone = False
        """Nobody waits for it any more; it is dropped at the next turn."""
        self.read = 0
        """Bytes of previews that have been looked at; told by who reads them."""
        self.served = 0
        """Pixels evaluated so far, on the clock that all jobs share: those with the fewest come first."""
        self.left = task.cost
        """Pixels still to be evaluated."""
        self.begun = False
        self.done = 0
        """Whole evaluations so far."""
        self._previews, self._shown = previews, 0
        self._admitted_at = self._begun_at = time.monotonic()
        self._run: PictureRun | None = None
        self._sweep: Sweep | None = None

    @property
    def key(self) -> Key | None:
        """What its next evaluation can share a network call with; None: it has none before others are answered."""
        sweep = self._sweep
        if sweep is None or sweep.size is None:
            return None
        return (sweep.unet, *padded(sweep.size, sweep.unet.multiple))

    def begin(self, clock: int) -> None:
        """Start the solver; the job's clock starts where the others' stands."""
        self.begun, self.served, self._begun_at = True, clock, time.monotonic()
        task = self.task
        mu = torch.from_numpy(np.array(task.pixels))  # PyTorch wants to own what it reads
        self._run = task.sampler.begin(mu, task.conditions, task.seed, task.plan)
        self._sweep = next(self._run)

    def take(self) -> Evaluation:
        """Its next evaluation; ``key`` tells whether there is one."""
        assert self._sweep is not None
        asked = self._sweep.take()
        self.served += asked.pixels
        self.left -= asked.pixels
        return asked

    def give(self, asked: Evaluation, output: Tensor) -> list[Event]:
        """Answer an evaluation, and go on as far as that allows; returns what there is to tell.

        Raises:
            VlmirError: The network's output is unfit.
        """
        assert self._sweep is not None
        if not self._sweep.give(asked, output):
            return []
        step = self._sweep.told(self.done)
        if step.x0 is None:
            return [step]
        self.done += 1
        told: list[Event] = [step._replace(x0=self._preview(step.x0))]
        result = self._advance()
        return told if result is None else [*told, result]

    def close(self) -> None:
        """Free what it holds."""
        self.begun = False
        if self._run is not None:
            self._run.close()
        self._run = self._sweep = None

    def _preview(self, x0: Tensor) -> Tensor | None:
        """``x0`` if it is wanted and its reader keeps up: previews must not pile up where nobody reads them."""
        if not self._previews:
            return None
        unread, shown = self._shown - self.read, thinned(x0)
        if unread and unread + shown.nbytes > _MOST_UNREAD:
            return None
        self._shown += shown.nbytes
        return shown.clone()  # the run goes on to change x0 before anybody has looked at it

    def _advance(self) -> Sampled | None:
        assert self._run is not None
        try:
            self._sweep = next(self._run)
        except StopIteration as end:
            now = time.monotonic()
            seconds = {"wait": self._begun_at - self._admitted_at, "sample": now - self._begun_at}
            milliseconds = {name: round(value * 1e3, 3) for name, value in seconds.items()}
            return Sampled(pixels=end.value.numpy(), milliseconds=milliseconds)
        return None
