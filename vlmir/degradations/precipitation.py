"""Rain streaks and snow flakes between the camera and the scene."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from vlmir.degradations.fields import Extent, Field, Pixels, blur, lerp, line_kernel

__all__ = ["rainy", "snowy"]

_FRACTION_BITS = 4  # OpenCV's fixed-point coordinates: sixteenths of a pixel
_MOST_STREAKS = 2200
_SMALLEST_RADIUS = 0.8
_FLAKE_LAYERS = ((900, 0.9, 0.3), (300, 2.0, 0.6), (50, 4.5, 1.8))  # flakes, radius, defocus


def rainy(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Add one to three layers of bright streaks, each with its own direction and length.

    Strength 0 looks like Rain100L, from 0.5 on like Rain100H (Yang et al. 2017). The light of the
    streaks is added to the picture, as there; heavy rain also veils the distance.
    """
    extent = Extent.of(pixels)
    layers = int(rng.integers(1, 4))
    direction = math.radians(rng.normal(90.0, 14.0))
    gain = lerp(0.45, 1.0, strength) * rng.uniform(0.85, 1.1)
    veil = 0.12 * strength * rng.random()
    count = lerp(0.08, 1.0, strength) * _MOST_STREAKS / layers
    light = np.zeros(pixels.shape[:2], dtype=np.float32)
    for _ in range(layers):
        angle = direction + math.radians(rng.normal(0.0, 7.0))
        light += _streaks(extent, angle, extent.count(count), rng)
    tint = np.array([0.97, 0.99, 1.0], dtype=np.float32) * np.float32(gain)
    veiled = pixels + (np.float32(0.72) - pixels) * np.float32(veil)
    return veiled + light[..., None] * tint


def _streaks(extent: Extent, angle: float, count: int, rng: np.random.Generator) -> Field:
    """One layer of `count` streaks around `angle` (radians), H×W, 0…1."""
    most = extent.count(_MOST_STREAKS)
    typical_length = rng.uniform(12.0, 38.0) * extent.unit
    typical_width = rng.uniform(0.6, 1.4) * extent.unit
    softness = rng.uniform(0.3, 0.8) * extent.unit
    # Draw numbers for all streaks, keep the first: more strength only adds rain.
    middle = rng.random((most, 2))[:count] * (extent.width, extent.height)
    angles = angle + rng.normal(0.0, math.radians(1.5), most)[:count]
    lengths = typical_length * rng.uniform(0.6, 1.4, most)[:count]
    widths = typical_width * rng.uniform(0.6, 1.5, most)[:count]
    # A streak thinner than a pixel is drawn one pixel wide and dimmed instead.
    levels = 255.0 * rng.uniform(0.3, 1.0, most)[:count] * np.clip(widths, 0.5, 1.0)
    half = 0.5 * lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ends = np.concatenate([middle - half, middle + half], axis=-1)
    return blur(_draw_lines(extent, ends, np.maximum(1.0, np.rint(widths)), levels), softness)


def _draw_lines(
    extent: Extent,
    ends: NDArray[np.float64],
    widths: NDArray[np.float64],
    levels: NDArray[np.float64],
) -> Field:
    """Draw N lines (ends N×4 as x, y, x, y in pixels), the brightest on top; H×W, 0…1."""
    canvas = np.zeros((extent.height, extent.width), dtype=np.uint8)
    fixed = np.rint(ends * (1 << _FRACTION_BITS)).astype(np.int64).tolist()
    thickness = widths.astype(np.int64).tolist()
    for i in np.argsort(levels).tolist():
        x0, y0, x1, y1 = fixed[i]
        cv2.line(canvas, (x0, y0), (x1, y1), levels[i], thickness[i], cv2.LINE_AA, _FRACTION_BITS)
    return np.asarray(canvas / np.float32(255.0), dtype=np.float32)


def snowy(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Cover the picture with flakes in three depth layers, and a thin white veil.

    Near flakes are few, large, fast and out of focus; far ones many and small.
    """
    extent = Extent.of(pixels)
    white = np.float32(rng.uniform(0.88, 1.0))
    opacity = lerp(0.75, 1.0, strength)
    veil = lerp(0.02, 0.2, strength) * rng.uniform(0.5, 1.0)
    fall = math.radians(rng.normal(90.0, 25.0))
    speed = rng.uniform(0.5, 3.0)
    clear = np.full(pixels.shape[:2], 1.0 - veil, dtype=np.float32)
    for most, radius, defocus in _FLAKE_LAYERS:
        size = radius * extent.unit
        count = extent.count(most * lerp(0.2, 1.0, strength))
        flakes = _flakes(extent, size, count, extent.count(most), rng)
        moving = cv2.filter2D(flakes, -1, line_kernel(speed * size, fall))
        flakes = blur(np.asarray(moving, dtype=np.float32), defocus * extent.unit)
        clear *= 1.0 - np.float32(opacity) * flakes
    return np.asarray(white + (pixels - white) * clear[..., None], dtype=np.float32)


def _flakes(extent: Extent, size: float, count: int, most: int, rng: np.random.Generator) -> Field:
    """One layer: the first `count` of `most` random ellipses of about `size` pixels; H×W, 0…1."""
    centres = rng.random((most, 2))[:count] * (extent.width, extent.height)
    radii = size * np.exp(rng.normal(0.0, 0.35, (most, 2)))[:count]
    turns = rng.uniform(0.0, 180.0, most)[:count]
    # A flake smaller than a pixel is drawn as large as one and dimmed instead.
    drawn = np.maximum(radii, _SMALLEST_RADIUS)
    cover = (radii / drawn).prod(axis=-1)
    levels = 255.0 * rng.uniform(0.7, 1.0, most)[:count] * cover
    scale = 1 << _FRACTION_BITS
    canvas = np.zeros((extent.height, extent.width), dtype=np.uint8)
    fixed_centres = np.rint(centres * scale).astype(np.int64).tolist()
    fixed_radii = np.rint(drawn * scale).astype(np.int64).tolist()
    for i in np.argsort(levels).tolist():
        cv2.ellipse(
            canvas,
            tuple(fixed_centres[i]),
            tuple(fixed_radii[i]),
            turns[i],
            0,
            360,
            levels[i],
            -1,
            cv2.LINE_AA,
            _FRACTION_BITS,
        )
    return np.asarray(canvas / np.float32(255.0), dtype=np.float32)
