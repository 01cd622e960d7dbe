"""Missing parts: strokes and boxes of one flat colour."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vlmir.degradations.fields import Extent, Pixels, lerp

__all__ = ["uncompleted"]

_MOST_SHAPES = 400  # a stop for pictures of a few pixels, where shapes may miss every pixel centre
_VISIBLE = 0.15  # least mean difference between the fill and the picture


def uncompleted(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Fill 5 % (strength 0) to 35 % (1) of the picture with white, black or its mean grey."""
    extent = Extent.of(pixels)
    fill = _visible_fill(pixels, rng)
    boxes = rng.uniform(0.0, 1.0)
    weight = rng.uniform(0.01, 0.05)  # stroke width, fraction of the side
    wanted = lerp(0.05, 0.35, strength) * extent.height * extent.width
    mask = np.zeros((extent.height, extent.width), dtype=np.uint8)
    for _ in range(_MOST_SHAPES):
        if cv2.countNonZero(mask) >= wanted:
            break
        if rng.random() < boxes:
            _add_box(mask, extent, rng)
        else:
            _add_stroke(mask, extent, weight, rng)
    return np.where(mask[..., None] > 0, fill, pixels).astype(np.float32)


def _visible_fill(pixels: Pixels, rng: np.random.Generator) -> np.float32:
    """White, black or mean grey: the first in random order that stands out from the picture."""
    mean = float(pixels.mean())
    candidates = rng.permutation(np.array([0.0, 1.0, mean], dtype=np.float32))
    contrasts = [float(np.abs(pixels - fill).mean()) for fill in candidates]
    visible = next(i for i, contrast in enumerate(contrasts) if contrast >= _VISIBLE)
    return np.float32(candidates[visible])


def _add_box(mask: NDArray[np.uint8], extent: Extent, rng: np.random.Generator) -> None:
    size = np.array([extent.width, extent.height])
    centre = rng.random(2) * size
    half = np.maximum(rng.uniform(0.03, 0.12, 2) * size, 0.5)
    (left, top), (right, bottom) = ((centre + s * half).astype(int).tolist() for s in (-1, 1))
    cv2.rectangle(mask, (left, top), (right, bottom), 255, -1)


def _add_stroke(
    mask: NDArray[np.uint8], extent: Extent, weight: float, rng: np.random.Generator
) -> None:
    steps = int(rng.integers(3, 9))
    headings = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, 0.9, steps))
    strides = rng.uniform(0.04, 0.14, (steps, 1)) * extent.side
    moves = strides * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    path = rng.random(2) * (extent.width, extent.height) + np.cumsum(moves, axis=0)
    thickness = max(1, round(weight * extent.side))
    cv2.polylines(mask, [np.rint(path).astype(np.int32)], False, 255, thickness)
