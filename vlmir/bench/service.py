"""How a server holds up: more and more clients, each with one picture after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from vlmir.image import Image, encode
from vlmir.options import RestoreOptions

__all__ = ["CLIENTS", "Client", "measure_service"]

CLIENTS: Sequence[int] = (1, 2, 4, 8, 16, 32)
"""Clients at once."""


class Client(Protocol):
    """A connection to a server, such as :class:`vlmir.client.RestorationClient`; threads may share it."""

    def restore(self, image: bytes, options: RestoreOptions) -> object:
        """Restore a picture."""


def measure_service(
    connect: Callable[[], AbstractContextManager[Client]], *, side: int, requests: int
) -> dict[str, dict[str, float]]:
    """Load a server.

    Each client waits for its picture before it sends the next; a server that is full is asked again after the delay
    that it names, and that wait counts.

    Args:
        connect: Makes a client.
        side: Of the pictures, pixels.
        requests: Pictures for each number of clients, at least as many as clients.

    Returns:
        ``8 clients`` and the like → ``p50_ms``, ``p95_ms``, ``p99_ms``, ``images_per_s``, ``megapixels_per_s``.

    Raises:
        VlmirError: A picture could not be restored.
    """
    return {f"{n} clients": _load(connect, n, side, max(n, requests)) for n in CLIENTS}


def _load(
    connect: Callable[[], AbstractContextManager[Client]], clients: int, side: int, requests: int
) -> dict[str, float]:
    with connect() as client, ThreadPoolExecutor(clients) as pool:

        def once(number: int) -> float:
            file = _file(side, number)
            began = time.perf_counter()
            client.restore(file, RestoreOptions(degradation="noisy"))
            return time.perf_counter() - began

        once(-1)
        began = time.perf_counter()
        taken = list(pool.map(once, range(requests)))
        whole = time.perf_counter() - began
    centiles = statistics.quantiles(taken, n=100, method="inclusive")
    return {
        **{f"p{p}_ms": 1e3 * centiles[p - 1] for p in (50, 95, 99)},
        "images_per_s": requests / whole,
        "megapixels_per_s": requests * side**2 / 1e6 / whole,
    }


def _file(side: int, number: int) -> bytes:
    """A picture of its own for each request: the same one again would be answered from the store."""
    rng = np.random.default_rng(number + 1)
    pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
    return encode(Image.from_levels(pixels), format="png")
