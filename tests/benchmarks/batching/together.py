"""Requests through the batcher against the same batches offline, and how full its network calls are."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np

from services.sampler.batcher import Batcher
from services.sampler.job import Task
from tests.unit.services.sampler_tools import NOTHING, batching, picture, sampled
from vlmir.bench.timing import in_turns, median_ratio
from vlmir.sampling import DiffusionSampler, Plan, finish
from vlmir.sweeps import padded

__all__ = ["measure_occupancy", "measure_throughput"]


def measure_throughput(
    sampler: DiffusionSampler, *, requests: int, side: int, steps: int, pixels: int, rounds: int
) -> dict[str, float]:
    """Restore noise both ways in turns: as so many requests at once, and offline in batches of the same size.

    Args:
        sampler: Of both.
        requests: Pictures.
        side: Of each, pixels.
        steps: Network evaluations of each.
        pixels: Most pixels of a network call.
        rounds: At least 1; each way is timed so often by either clock.

    Returns:
        Pictures a second ``offline`` and ``batched`` (medians), their ``ratio``, 1 where the batcher costs nothing
        (median of the rounds'), the same of processor time (``cpu_ratio``, which other load leaves alone), and the
        greatest ``difference`` of a pixel.
    """
    tasks = _tasks(sampler, requests, side, steps)
    room = _room(sampler, side, pixels)
    with batching(active=requests, waiting=0, pixels=pixels, room=10**9) as batcher:
        ways = {
            "offline": lambda: list(_offline(tasks, room)),
            "batched": lambda: asyncio.run(_at_once(batcher, tasks)),
        }
        device = sampler.unet.device
        taken = in_turns(ways, rounds=rounds, device=device)
        spent = in_turns(ways, rounds=rounds, device=device, clock=time.process_time)
        pairs = zip(ways["offline"](), ways["batched"](), strict=True)
        difference = max(float(np.abs(one - other).max()) for one, other in pairs)
    return {
        **{name: requests / statistics.median(times) for name, times in taken.items()},
        "ratio": median_ratio(taken["offline"], taken["batched"]),
        "cpu_ratio": median_ratio(spent["offline"], spent["batched"]),
        "difference": difference,
    }


def measure_occupancy(
    sampler: DiffusionSampler, *, clients: Sequence[int], side: int, steps: int, pixels: int
) -> dict[str, dict[str, float]]:
    """Let clients restore three pictures each, one after the other.

    Returns:
        ``8 clients`` and the like → ``mean_windows`` of a network call, the ``room`` there is for, ``occupancy``, the
        share of it that is taken, and ``images_per_s``.
    """
    room, found = _room(sampler, side, pixels), dict[str, dict[str, float]]()
    for number in clients:
        tasks = _tasks(sampler, number, side, steps)
        with batching(active=number, waiting=0, pixels=pixels, room=10**9) as batcher:
            began = time.perf_counter()
            asyncio.run(_at_once(batcher, tasks, times=3))
            seconds = time.perf_counter() - began
        found[f"{number} clients"] = {
            "mean_windows": batcher.stats.mean_windows,
            "room": room,
            "occupancy": batcher.stats.mean_windows / room,
            "images_per_s": 3 * number / seconds,
        }
    return found


def _tasks(sampler: DiffusionSampler, number: int, side: int, steps: int) -> list[Task]:
    plan = Plan(steps=steps, solver="posterior", realism=1.0, tile=0)
    return [
        Task(
            sampler=sampler,
            pixels=picture(side, side, seed),
            conditions=NOTHING,
            seed=seed,
            plan=plan,
        )
        for seed in range(number)
    ]


def _room(sampler: DiffusionSampler, side: int, pixels: int) -> int:
    """Windows that a network call has room for."""
    height, width = padded((side, side), sampler.unet.multiple)
    return max(1, pixels // (height * width))


def _offline(tasks: Sequence[Task], room: int) -> Iterator[np.ndarray]:
    """The restored pictures, 3×H×W, made so many at a time."""
    for begin in range(0, len(tasks), room):
        group = tasks[begin : begin + room]
        run = group[0].sampler.sample(
            [np.ascontiguousarray(task.pixels.transpose(1, 2, 0)) for task in group],
            [task.conditions for task in group],
            [task.seed for task in group],
            group[0].plan,
        )
        yield from (restored.transpose(2, 0, 1) for restored in finish(run))


async def _at_once(batcher: Batcher, tasks: Sequence[Task], *, times: int = 1) -> list[np.ndarray]:
    async def client(task: Task) -> np.ndarray:
        for _ in range(times - 1):
            await sampled(batcher, task)
        return await sampled(batcher, task)

    return await asyncio.gather(*map(client, tasks))
