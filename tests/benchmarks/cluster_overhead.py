"""What the cluster costs: the same picture restored by the library, and through Ray Serve and three services.

Run ``python -m tests.benchmarks.cluster_overhead``. Both are measured in turns, each with one thread for a network, so
that the difference of the medians is what the way through the cluster takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.integration.cluster import starting_cluster
from tests.integration.serving import running_ray, serving
from tests.unit.training.pictures import scene
from vlmir.bundle import load_bundle
from vlmir.client import RestorationClient
from vlmir.image import Image, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

__all__ = ["main", "measure"]


def measure(bundle: Path, store: Path, *, side: int, rounds: int) -> dict[str, float]:
    """Restore pictures that nobody has seen, most faithfully, both ways.

    Args:
        bundle: Folder of the weights.
        store: Folder for what the restorer keeps.
        side: Side of the pictures in pixels.
        rounds: Pictures.

    Returns:
        Medians in milliseconds: ``library``, ``cluster``, and the ``difference`` of the medians.
    """
    torch.set_num_threads(1)
    library = Restorer.load(bundle)
    took: dict[str, list[float]] = {"library": [], "cluster": []}
    with (
        running_ray({"VLMIR_STORE_URL": str(store)}),
        starting_cluster(bundle) as services,
        serving(services) as app,
        RestorationClient(app.address) as client,
    ):
        ways: dict[str, Callable[..., object]] = {
            "library": library.restore,
            "cluster": client.restore,
        }
        for number in range(rounds + 3):
            levels = np.ascontiguousarray(scene(number, side, side))
            picture = encode(Image.from_levels(levels), format="png")
            for name, restore in ways.items():
                began = time.perf_counter()
                restore(picture, RestoreOptions())
                if number >= 3:  # the first ones warm up
                    took[name].append(1000 * (time.perf_counter() - began))
    medians = {name: statistics.median(times) for name, times in took.items()}
    return medians | {"difference": medians["cluster"] - medians["library"]}


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--side", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--rounds", type=int, default=40, help="pictures restored each way")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        folder = load_bundle(given.bundle).folder
        measured = measure(folder, Path(store), side=given.side, rounds=given.rounds)
    print(json.dumps({name: round(value, 1) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
