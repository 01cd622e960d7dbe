"""Shadows cast on the scene."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vlmir.degradations.fields import (
    Extent,
    Field,
    Pixels,
    blur,
    lerp,
    smooth_field,
    to_display,
    to_linear,
)

__all__ = ["shadowed"]

_TRIES = 8
_LEAST_SHARE = 0.08
_LEAST_BRIGHTNESS = 0.9


def shadowed(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Dim a soft-edged region in linear light to 0.65 (strength 0) … 0.2 (1) of its brightness.

    The shade is slightly blue: the sky still lights what the sun does not.
    """
    extent = Extent.of(pixels)
    outline = _visible_outline(pixels, extent, rng)
    penumbra = rng.choice([1.0, 2.5, 6.0]) * rng.uniform(0.7, 1.3) * extent.unit
    shade = blur(outline, penumbra)
    left_over = lerp(0.65, 0.2, strength) * rng.uniform(0.9, 1.1)
    tint = 1.0 + rng.uniform(0.02, 0.12) * np.array([-1.0, 0.0, 1.0])
    loss = (1.0 - left_over * tint).astype(np.float32)
    return to_display(to_linear(pixels) * (1.0 - shade[..., None] * loss))


def _visible_outline(pixels: Pixels, extent: Extent, rng: np.random.Generator) -> Field:
    """Where the shadow falls; H×W, 0 or 1.

    A shadow that only touches the picture, or falls where it is dark anyway, would be a label without a damage: then
    another is drawn, a few times at most.
    """
    brightness = pixels.mean(axis=2)
    needed = _LEAST_BRIGHTNESS * brightness.mean()
    for _ in range(_TRIES):
        outline = _polygons(extent, rng) if rng.random() < 0.6 else _foliage(extent, rng)
        share = float(outline.mean())
        if share >= _LEAST_SHARE and (brightness * outline).mean() >= needed * share:
            break
    return outline


def _polygons(extent: Extent, rng: np.random.Generator) -> Field:
    """One to three star-shaped polygons around the middle part of the picture; H×W, 0 or 1."""
    canvas = np.zeros((extent.height, extent.width), dtype=np.float32)
    size = np.array([extent.width, extent.height])
    for _ in range(int(rng.integers(1, 4))):
        corners = int(rng.integers(3, 10))
        angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2.0 * math.pi / corners)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        radii = rng.uniform(0.2, 0.6, (corners, 1)) * size
        points = rng.uniform(0.25, 0.75, 2) * size + directions * radii
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1.0)
    return canvas


def _foliage(extent: Extent, rng: np.random.Generator) -> Field:
    """Blobs, few and large or many and small, over 25 to 55 % of the picture; H×W, 0 or 1."""
    field = smooth_field(extent, int(rng.choice([3, 5, 9])), rng)
    level = np.quantile(field[::4, ::4], 1.0 - rng.uniform(0.25, 0.55))
    return np.asarray(field > level, dtype=np.float32)
