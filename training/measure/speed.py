"""How long things take on this machine: start-up, one photo, a big photo."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from training.data.pool import Bytes
from vlmir.image import Image, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

__all__ = ["measure_speed"]

_BIG = """
import resource, time
import numpy as np
from vlmir import Restorer, RestoreOptions
restorer = Restorer.load({bundle!r})
picture = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
began = time.perf_counter()
restorer.restore(picture, RestoreOptions(degradation="noisy"))
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def measure_speed(restorer: Restorer, bundle: str, photo: Bytes) -> dict[str, float]:
    """Wall times in seconds, and the peak memory of restoring 24 megapixels in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.png"
        source.write_bytes(encode(Image.from_levels(photo)))
        target = ["-o", str(Path(folder) / "out.png"), "--bundle", bundle]
        command = [sys.executable, "-m", "vlmir", "restore", str(source), *target]
        import_s = min(_wall([sys.executable, "-c", "import vlmir"]) for _ in range(3))
        cli_s = min(_wall([*command, "--overwrite"]) for _ in range(3))
    warm = []
    for _ in range(5):
        began = time.perf_counter()
        restorer.restore(photo, RestoreOptions(degradation="noisy"))
        warm.append(time.perf_counter() - began)
    big = subprocess.run(
        [sys.executable, "-c", _BIG.format(bundle=bundle)],
        check=True,
        capture_output=True,
        text=True,
    )
    big_s, big_gib = map(float, big.stdout.split())
    return {
        "import_s": import_s,
        "cli_s": cli_s,
        "warm_s": float(np.median(warm)),
        "big_s": big_s,
        "big_gib": big_gib,
    }


def _wall(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
