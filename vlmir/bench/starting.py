"""What comes before the first picture."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

__all__ = ["measure_start"]

_LOAD = """
import time
began = time.perf_counter()
from vlmir import Restorer, RestoreOptions
import numpy as np
imported = time.perf_counter()
restorer = Restorer.load({bundle!r}, device={device!r}, precision={precision!r})
loaded = time.perf_counter()
restorer.restore(np.zeros((256, 256, 3), np.uint8), RestoreOptions(degradation="noisy"))
print(imported - began, loaded - imported, time.perf_counter() - loaded)
"""


def measure_start(bundle: str, *, device: str, precision: str, rounds: int) -> dict[str, float]:
    """Seconds (medians) of new processes.

    Returns:
        ``import_s`` of ``vlmir``; ``load_s`` of the weights, the libraries that they need included; ``first_s`` of a
        first picture of 256²; ``process_s``, all of it and the interpreter's start.
    """
    code = _LOAD.format(bundle=bundle, device=device, precision=precision)
    rows = list[list[float]]()
    for _ in range(rounds):
        began = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        rows.append([*map(float, run.stdout.split()), time.perf_counter() - began])
    names = ("import_s", "load_s", "first_s", "process_s")
    return {
        name: statistics.median(column)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
