"""Haze by the scattering model over a random depth map."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vlmir.degradations.fields import Extent, Field, Pixels, blur, smooth_field

__all__ = ["hazy"]


def hazy(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Koschmieder's law I = J·t + A·(1 - t), t = exp(-β·d).

    Applied to display-encoded values, as the public haze data sets are made. The air light A is
    nearly grey, 0.7…1; β grows with strength; the depth d is smooth or piecewise smooth, 0.25…1.
    """
    extent = Extent.of(pixels)
    depth = np.float32(0.25) + np.float32(0.75) * _depth(extent, rng)
    air = rng.uniform(0.72, 0.98) + rng.uniform(-0.02, 0.02, size=3)
    beta = 0.4 * (2.7 / 0.4) ** strength
    transmission = cv2.exp(depth * np.float32(-beta))[..., None]
    light = np.clip(air, 0.0, 1.0).astype(np.float32)
    return np.asarray(light + (pixels - light) * transmission, dtype=np.float32)


def _depth(extent: Extent, rng: np.random.Generator) -> Field:
    """Depth map, H×W, 0…1: receding ground, uneven air, in half of the cases objects."""
    depth = 0.6 * _ramp(extent, rng) + rng.uniform(0.2, 0.6) * smooth_field(extent, 4, rng)
    depth = depth.astype(np.float32)
    if rng.random() < 0.5:
        _place_objects(depth, extent, rng)
        depth = blur(depth, 1.0 * extent.unit)
    low, high = float(depth.min()), float(depth.max())
    return np.asarray((depth - low) / max(high - low, 1e-6), dtype=np.float32)


def _ramp(extent: Extent, rng: np.random.Generator) -> Field:
    """A plane in perspective, mostly farther towards the top, 0…1."""
    angle = rng.normal(0.0, 0.5)
    y = np.linspace(1.0, 0.0, extent.height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, extent.width, dtype=np.float32)[None, :]
    slope = np.clip(y * math.cos(angle) + x * math.sin(angle), 0.0, 1.0)
    # Depth along a ground plane grows faster near the horizon.
    return np.asarray(slope ** np.float32(rng.uniform(0.7, 2.0)), dtype=np.float32)


def _place_objects(depth: Field, extent: Extent, rng: np.random.Generator) -> None:
    """Set quadrilaterals of nearly constant depth into the map, the far ones first."""
    count = int(rng.integers(3, 9))
    distances = np.sort(rng.uniform(0.0, 1.0, count))[::-1]
    size = np.array([extent.width, extent.height])
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    for distance in distances:
        centre = rng.uniform(0.0, 1.0, 2) * size
        half = rng.uniform(0.08, 0.3, 2) * size
        quadrilateral = centre + (corners + rng.uniform(-0.3, 0.3, (4, 2))) * half
        cv2.fillPoly(depth, [np.rint(quadrilateral).astype(np.int32)], float(distance))
