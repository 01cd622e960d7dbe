"""What happens at the lens: water drops on the glass, and camera shake."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vlmir.degradations.fields import (
    Extent,
    Field,
    Pixels,
    blur,
    lerp,
    line_kernel,
    smooth_field,
    to_display,
    to_linear,
)

__all__ = ["motion_blurry", "raindrop"]

_MOST_DROPS = 300
_REDUCTION = 4  # a drop shows the scene made smaller, so it reads a reduced copy


def motion_blurry(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Blur along a straight or slightly bent camera path, 7 to 31 px long in the reference photo.

    Exposure adds up light, so the blur is taken in linear light.
    """
    length = lerp(7.0, 31.0, strength) * Extent.of(pixels).unit
    kernel = line_kernel(length, rng.uniform(0.0, math.pi), rng.normal(0.0, 0.12))
    light = cv2.filter2D(to_linear(pixels), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return to_display(np.asarray(light, dtype=np.float32))


def raindrop(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Put drops and a thin uneven water film on the lens.

    Each drop is a small wide-angle lens: it shows the scene around it upside down, reduced and out
    of focus, darker towards its rim, with a soft edge because the camera focuses on the distance.
    """
    extent = Extent.of(pixels)
    film = smooth_field(extent, 5, rng)
    film_opacity = np.clip((film - 0.4) * 3.0, 0.0, 1.0) * np.float32(lerp(0.25, 0.9, strength))
    mist = np.float32(rng.uniform(0.0, 0.35)) * np.float32(strength)
    optics = _draw_drops(extent, lerp(0.15, 1.0, strength), rng)

    smeared = blur(pixels, 2.5 * extent.unit)
    scene = pixels + (smeared - pixels) * film_opacity[..., None]
    scene += (np.float32(0.75) - scene) * (mist * film)[..., None]
    view = optics.refract(pixels)
    return np.asarray(scene + (view - scene) * optics.opacity[..., None], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class _DropOptics:
    """Where each pixel of the picture looks when it lies behind a drop; maps are all H×W.

    `defocus` is the blur of what the drops show, as a fraction of the picture's side.
    """

    defocus: float
    opacity: Field
    gain: Field
    x: Field
    y: Field

    def refract(self, pixels: Pixels) -> Pixels:
        """The scene seen through the drops, H×W×3."""
        height, width = pixels.shape[:2]
        size = (max(1, width // _REDUCTION), max(1, height // _REDUCTION))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        small = blur(
            np.asarray(small, dtype=np.float32), self.defocus * math.sqrt(size[0] * size[1])
        )
        across = self.x * np.float32(size[0] / width)
        down = self.y * np.float32(size[1] / height)
        view = cv2.remap(small, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(view * self.gain[..., None], dtype=np.float32)


def _draw_drops(extent: Extent, density: float, rng: np.random.Generator) -> _DropOptics:
    """Lay drops of many sizes on the glass; `density` 0…1 of the most there can be."""
    shape = (extent.height, extent.width)
    optics = _DropOptics(
        defocus=rng.uniform(0.015, 0.06),
        opacity=np.zeros(shape, dtype=np.float32),
        gain=np.ones(shape, dtype=np.float32),
        x=np.zeros(shape, dtype=np.float32),
        y=np.zeros(shape, dtype=np.float32),
    )
    most = extent.count(_MOST_DROPS)
    softness = rng.uniform(0.25, 1.0)
    spread = rng.uniform(0.3, 0.6)
    typical = rng.uniform(3.5, 7.5) * extent.unit
    centres = rng.random((most, 2)) * (extent.width, extent.height)
    radii = np.clip(
        typical * np.exp(rng.normal(0.0, spread, most)), 1.5, 0.2 * max(extent.side, 8.0)
    )
    shapes = rng.random((most, 6))
    for i in range(extent.count(density * _MOST_DROPS)):
        _draw_drop(optics, centres[i], float(radii[i]), softness, shapes[i])
    return optics


def _draw_drop(
    optics: _DropOptics,
    centre: NDArray[np.float64],
    radius: float,
    softness: float,
    shape: NDArray[np.float64],
) -> None:
    """Write one drop into the maps; `shape` holds six numbers 0…1 that make it individual."""
    height, width = optics.opacity.shape
    edge = 1.0 + 0.5 * softness  # where the opacity has fallen to nothing, in radii
    reach = radius * edge * 1.2 / 0.9  # the longest stretch over the deepest dent
    left, top = (max(0, math.floor(c - reach)) for c in centre)
    right, bottom = (
        min(width, math.ceil(centre[0] + reach)),
        min(height, math.ceil(centre[1] + reach)),
    )
    if left >= right or top >= bottom:
        return
    window = np.s_[top:bottom, left:right]
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(centre[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(centre[1])
    distance = _shaped_distance(x / np.float32(radius), y / np.float32(radius), shape)
    opacity = np.clip((edge - distance) / np.float32(softness), 0.0, 1.0)
    opacity *= opacity * (3.0 - 2.0 * opacity) * np.float32(0.75 + 0.25 * shape[3])
    above = opacity > optics.opacity[window]
    # Minus: the image in a drop is upside down. The rim bends light further than the middle.
    reduction = np.float32(4.0 + 6.0 * shape[4]) * (1.0 + 0.6 * distance * distance)
    gain = np.float32(1.0 + 0.35 * shape[5]) - np.float32(0.25) * distance * distance
    np.copyto(optics.opacity[window], opacity, where=above)
    np.copyto(optics.x[window], np.float32(centre[0]) - x * reduction, where=above)
    np.copyto(optics.y[window], np.float32(centre[1]) - y * reduction, where=above)
    np.copyto(optics.gain[window], np.maximum(gain, np.float32(0.6)), where=above)


def _shaped_distance(x: Field, y: Field, shape: NDArray[np.float64]) -> Field:
    """Distance from a drop's centre, 1 at its outline: an ellipse, longer downwards, dented."""
    stretch = np.float32(0.85 + 0.35 * shape[0])
    x, y = x * stretch, y / stretch
    radius = np.sqrt(x * x + y * y)
    phase = 2.0 * math.pi * shape[1]
    dent = 1.0 + np.float32(0.1 * shape[2]) * np.cos(3.0 * np.arctan2(y, x) + np.float32(phase))
    return np.asarray(radius * dent, dtype=np.float32)
