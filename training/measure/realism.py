"""What the realism dial trades: error against sharpness, on noisy photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import cv2
import numpy as np
from rich.progress import track

from training.data.pool import Bytes
from training.measure.benches import Pair
from training.measure.intervals import summary
from training.measure.restoration import restored_bytes
from vlmir.metrics import fidelity
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

__all__ = ["HALFWAY", "measure_realism", "sharpness"]

HALFWAY = RestoreOptions(realism=0.5, steps=20)
"""The middle of the dial."""


def measure_realism(restorer: Restorer, pairs: Sequence[Pair]) -> dict[str, object]:
    """The middle of the dial against its most faithful end.

    Returns:
        What :func:`training.measure.intervals.summary` gives of the four numbers of :class:`vlmir.metrics.Fidelity` in
        the middle, and of ``sharpness`` there and ``sharpness_faithful`` at the end.
    """
    rows = []
    for lq, gt in track(pairs, "realism"):
        middle, faithful = (
            restored_bytes(restorer, lq, options) for options in (HALFWAY, RestoreOptions())
        )
        sharp = {
            "sharpness": sharpness(middle, gt),
            "sharpness_faithful": sharpness(faithful, gt),
        }
        rows.append(asdict(fidelity(middle, gt)) | sharp)
    return summary({name: [row[name] for row in rows] for name in rows[0]})


def sharpness(restored: Bytes, gt: Bytes) -> float:
    """Mean gradient of luma over that of the truth: 1 is as sharp, less is smoother. Both H×W×3."""
    mine, true = (_mean_gradient(picture) for picture in (restored, gt))
    return mine / true


def _mean_gradient(pixels: Bytes) -> float:
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = (cv2.Sobel(luma, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return float(np.hypot(across, down).mean())
