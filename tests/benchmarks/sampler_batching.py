"""What continuous batching costs: concurrent requests through the batcher against the same batch offline.

Run ``python -m tests.benchmarks.sampler_batching``. Both are measured in turns, so that other load hits both alike; the
ratio of throughputs is 1 where the batcher costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import numpy as np

from services.sampler.batcher import Batcher
from services.sampler.job import Sampled, Task
from services.sampler.model import load_model, warm_up
from vlmir.bundle import load_bundle
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish

__all__ = ["main", "measure"]

NOTHING = Conditions(None, None, None)


def measure(
    sampler: DiffusionSampler, *, requests: int, side: int, steps: int, rounds: int
) -> dict[str, float]:
    """Restore noise both ways.

    Returns:
        Requests per second ``offline`` and ``batched`` (medians of the rounds), their ``ratio`` (median of the
        rounds' ratios), ``mean_windows`` of a network call, and the greatest ``difference`` of a pixel.
    """
    rng = np.random.default_rng(0)
    pictures = [rng.random((side, side, 3), np.float32) for _ in range(requests)]
    plan = Plan(steps=steps, solver="posterior", realism=1.0, tile=0)
    tasks = [
        Task(
            sampler=sampler,
            pixels=np.ascontiguousarray(picture.transpose(2, 0, 1)),
            conditions=NOTHING,
            seed=seed,
            plan=plan,
        )
        for seed, picture in enumerate(pictures)
    ]

    async def one(batcher: Batcher, task: Task) -> Sampled:
        *_, last = [event async for event in batcher.run(task)]
        assert isinstance(last, Sampled)
        return last

    async def all_at_once(batcher: Batcher) -> list[Sampled]:
        return await asyncio.gather(*(one(batcher, task) for task in tasks))

    batcher = Batcher(active=requests, waiting=0, pixels=requests * side * side, room=10**9)
    offline, batched, difference = list[float](), list[float](), 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        expected = finish(sampler.sample(pictures, [NOTHING] * requests, [*range(requests)], plan))
        between = time.perf_counter()
        got = asyncio.run(all_at_once(batcher))
        offline.append(between - began)
        batched.append(time.perf_counter() - between)
        for one_way, other in zip(expected, got, strict=True):
            away = np.abs(one_way.transpose(2, 0, 1) - other.pixels).max()
            difference = max(difference, float(away))
    batcher.close()
    ratios = [fast / slow for fast, slow in zip(offline, batched, strict=True)]
    return {
        "offline": requests / statistics.median(offline),
        "batched": requests / statistics.median(batched),
        "ratio": statistics.median(ratios),
        "mean_windows": batcher.stats.mean_windows,
        "difference": difference,
    }


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--requests", type=int, default=8, help="concurrent requests")
    parser.add_argument("--side", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=3, help="network evaluations of each")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured")
    given = parser.parse_args()
    sampler = load_model(load_bundle(given.bundle))
    warm_up(sampler)
    measured = measure(
        sampler,
        requests=given.requests,
        side=given.side,
        steps=given.steps,
        rounds=given.rounds,
    )
    print(json.dumps({name: round(value, 6) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
