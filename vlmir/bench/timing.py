"""Times of several ways to do a thing, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from vlmir.compute import Compute

__all__ = ["ceiling_tflops", "in_turns", "median_ratio", "seconds"]

Clock = Callable[[], float]

_SIDE, _TRIALS = 2048, 5


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one untimed call of each.

    Args:
        ways: Name → what is to be timed.
        rounds: At least 1.
        device: Where they compute; a GPU is waited for.
        clock: Reads seconds; ``time.process_time`` leaves other processes out, where one thread computes.
    """
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way, device, clock))
    return times


def seconds(way: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """What one call takes."""
    _finish(device)
    began = clock()
    way()
    _finish(device)
    return clock() - began


def median_ratio(dividends: list[float], divisors: list[float]) -> float:
    """The median over the rounds of dividend / divisor."""
    return statistics.median(a / b for a, b in zip(dividends, divisors, strict=True))


def ceiling_tflops(compute: Compute, side: int = _SIDE) -> float:
    """TFLOP/s of a product of two square matrices, the best of some trials: what the machine can do at most.

    Args:
        compute: Where, and in which type.
        side: Of the matrices.
    """
    a, b = (torch.rand(side, side).to(compute.device, compute.dtype) for _ in range(2))
    times = in_turns({"product": lambda: a @ b}, rounds=_TRIALS, device=compute.device)
    return 2 * side**3 / min(times["product"]) / 1e12


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
