"""How long a small picture waits, alone and while a big one is under way."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from services.sampler.batcher import Batcher
from services.sampler.job import Task
from tests.unit.services.sampler_tools import NOTHING, batching, picture, sampled, until
from vlmir.options import RestoreOptions
from vlmir.sampling import DiffusionSampler

__all__ = ["measure_waiting"]


class _Took(NamedTuple):
    milliseconds: float
    calls: int
    """Network calls that ended meanwhile, its own included."""


def measure_waiting(
    sampler: DiffusionSampler, *, side: int, big: tuple[int, int], pixels: int, rounds: int
) -> dict[str, float | dict[str, float]]:
    """One client restores small pictures one after the other: twenty alone, then more while a big one runs.

    Both kinds are restored with the default setting.

    Args:
        sampler: Restores them.
        side: Of the small pictures, pixels.
        big: Height and width of the big one.
        pixels: Most pixels of a network call.
        rounds: Times that both are measured, in turns; in each the big one runs from its beginning to its end.

    Returns:
        ``alone`` and ``beside`` → ``pictures``, ``p50_ms``, ``p95_ms``, and ``p50_calls`` and ``p95_calls``, the
        network calls that ended between request and answer, the picture's own included; ``times_p50`` and
        ``times_p95``: beside over alone.
    """
    small = _task(sampler, (side, side))
    great = _task(sampler, big)
    alone, beside = list[_Took](), list[_Took]()
    with batching(pixels=pixels, room=10**9) as batcher:
        asyncio.run(_alone(batcher, small))  # warms up
        for _ in range(rounds):
            alone += asyncio.run(_alone(batcher, small))
            beside += asyncio.run(_beside(batcher, small, great))
    one, other = _summary(alone), _summary(beside)
    return {
        "alone": one,
        "beside": other,
        "times_p50": other["p50_ms"] / one["p50_ms"],
        "times_p95": other["p95_ms"] / one["p95_ms"],
    }


def _task(sampler: DiffusionSampler, size: tuple[int, int]) -> Task:
    return Task(
        sampler=sampler,
        pixels=picture(*size),
        conditions=NOTHING,
        seed=0,
        plan=sampler.plan(RestoreOptions()),
    )


async def _alone(batcher: Batcher, small: Task) -> list[_Took]:
    return [await _timed(batcher, small) for _ in range(20)]


async def _beside(batcher: Batcher, small: Task, great: Task) -> list[_Took]:
    running = asyncio.create_task(sampled(batcher, great))
    took = list[_Took]()
    await until(lambda: batcher.active == 1)
    while not running.done():
        took.append(await _timed(batcher, small))
    await running
    return took


async def _timed(batcher: Batcher, task: Task) -> _Took:
    began, calls = time.perf_counter(), batcher.stats.batches
    await sampled(batcher, task)
    return _Took(1e3 * (time.perf_counter() - began), batcher.stats.batches - calls)


def _summary(took: Sequence[_Took]) -> dict[str, float]:
    found: dict[str, float] = {"pictures": len(took)}
    for name, values in (
        ("ms", [one.milliseconds for one in took]),
        ("calls", [one.calls for one in took]),
    ):
        centiles = statistics.quantiles(values, n=100, method="inclusive")
        found |= {f"p{p}_{name}": centiles[p - 1] for p in (50, 95)}
    return found
