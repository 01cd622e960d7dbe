"""Measure the sampler's batcher: ``python -m tests.benchmarks.batching --json out/batching.json``.

Ways are timed in turns, so that other load hits all alike; times are medians, and ratios medians of the rounds'.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from services.sampler.model import warm_up
from tests.benchmarks.batching.network import measure_curve, measure_intensity, measure_machine
from tests.benchmarks.batching.together import measure_occupancy, measure_throughput
from tests.benchmarks.batching.waiting import measure_waiting
from vlmir.bench.network import load_networks
from vlmir.bundle import load_bundle
from vlmir.compute import Compute, processor_name
from vlmir.config import load_preset
from vlmir.sampling import CALL_PIXELS, DiffusionSampler

__all__ = ["main", "measure"]

BATCHES = (1, 2, 4, 8)
CLIENTS = (1, 2, 4, 8, 16)


def measure(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and numbers of each measurement, as soon as they are there."""
    compute = Compute.choose(given.device, given.precision)
    networks = load_networks(given.bundle, compute)
    base = given.bundle == "base"
    preset = load_preset("base") if base else load_bundle(given.bundle).preset
    sampler = DiffusionSampler(networks.chosen, preset.sampler)
    warm_up(sampler)
    side, pixels, rounds = given.side, given.batch_pixels, given.rounds
    yield (
        "about",
        {
            "bundle": given.bundle,
            "compute": str(compute),
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "side": side,
            "batch_pixels": pixels,
        },
    )
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "machine": lambda: measure_machine(compute),
        "intensity": lambda: measure_intensity(sampler, side=side, batches=BATCHES),
        "curve, images/s": lambda: measure_curve(
            networks, side=side, batches=BATCHES, rounds=rounds
        ),
        "throughput": lambda: measure_throughput(
            sampler,
            requests=given.requests,
            side=side,
            steps=given.steps,
            pixels=pixels,
            rounds=rounds,
        ),
        "occupancy": lambda: measure_occupancy(
            sampler, clients=CLIENTS, side=side, steps=given.steps, pixels=pixels
        ),
        "waiting": lambda: measure_waiting(
            sampler, side=side, big=tuple(given.big), pixels=pixels, rounds=rounds
        ),
    }
    for name, measured in measurements.items():
        yield name, measured()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print each measurement when it is there, and write all of them."""
    results = dict[str, dict[str, Any]]()
    given = _parser().parse_args(arguments)
    for name, numbers in measure(given):
        results[name] = numbers
        print(f"{name}: {json.dumps(_rounded(numbers), indent=2, ensure_ascii=False)}", flush=True)
        if given.json:
            text = json.dumps(results, indent=2, ensure_ascii=False)
            given.json.write_text(text + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights, or base")
    parser.add_argument("--device", default="auto", help="where the network runs")
    parser.add_argument("--precision", default="auto", help="of the network")
    parser.add_argument("--side", type=int, default=256, help="side of small pictures in pixels")
    parser.add_argument(
        "--big",
        type=int,
        nargs=2,
        default=(3000, 4000),
        metavar=("HEIGHT", "WIDTH"),
        help="the big picture",
    )
    parser.add_argument("--requests", type=int, default=8, help="requests at once for throughput")
    parser.add_argument("--steps", type=int, default=3, help="network evaluations of each")
    parser.add_argument(
        "--batch-pixels", type=int, default=CALL_PIXELS, help="most pixels of a network call"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    return parser


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    """With four digits, for people to read."""
    return {
        name: _rounded(value)
        if isinstance(value, dict)
        else (float(f"{value:.4g}") if isinstance(value, float) else value)
        for name, value in numbers.items()
    }


if __name__ == "__main__":
    main()
