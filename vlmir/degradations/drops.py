"""Water drops on the lens or the window in front of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vlmir.degradations.fields import Extent, Field, Pixels, blur, lerp, smooth_field

__all__ = ["raindrop"]

_MOST_DROPS = 900
_MOST_COVERED = 0.45  # share of the picture under drops, if none overlapped, at strength 1
_REDUCTION = 4  # a drop shows the scene made smaller, so it reads a reduced copy
_SKY = np.float32(
    0.93
)  # brighter than most of the scene; drops see it even where the frame does not


def raindrop(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Put drops, an uneven water film and a pale veil before the scene.

    Each drop is a strong wide-angle lens: it shows most of the scene upside down and very small, with the sky that lies
    beyond the frame. The camera focuses on the distance, so drops are pale discs with soft edges, from nearly sharp to
    wide and half transparent.
    """
    extent = Extent.of(pixels)
    film = smooth_field(extent, 5, rng)
    film_opacity = np.clip((film - 0.4) * 3.0, 0.0, 1.0) * np.float32(lerp(0.25, 0.9, strength))
    film_blur = rng.uniform(1.0, 4.0) * extent.unit
    veil = np.float32(rng.uniform(0.0, 0.5)) * np.float32(strength)
    veil_colour = _veil_colour(pixels, rng)
    look = _Look.draw(rng)
    optics = _lay_drops(extent, lerp(0.12, 1.0, strength), look, rng)

    scene = pixels + (blur(pixels, film_blur) - pixels) * film_opacity[..., None]
    scene += (veil_colour - scene) * (veil * (0.5 + 0.5 * film))[..., None]
    view = optics.refract(pixels, look)
    return np.asarray(scene + (view - scene) * optics.opacity[..., None], dtype=np.float32)


def _veil_colour(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Stray light in the water: between the scene's mean colour and a pale grey; 3 values."""
    mean = pixels.mean(axis=(0, 1))
    pale = np.float32(rng.uniform(0.5, 0.9))
    return np.asarray(mean + (pale - mean) * np.float32(rng.uniform(0.2, 1.0)), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What the drops of one picture have in common."""

    radius: float
    """Of a typical drop in the reference photo, pixels."""
    spread: float
    """Of the radii's logarithm."""
    softness: float
    """Width of the edge, in radii."""
    thickness: float
    """Opacity of the middle of a drop, 0…1."""
    defocus: float
    """Blur of what the drops show, as a fraction of the picture's side."""
    grey: float
    """Share of colour that is lost, 0…1."""
    sky: float
    """How much sky the drops show, 0…1."""
    slope: float
    """Where they show it: 1 below only (the image is upside down), 0 all over."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Look:
        """One of many possible looks."""
        return cls(
            radius=math.exp(rng.uniform(math.log(2.5), math.log(20.0))),
            spread=rng.uniform(0.2, 0.6),
            softness=rng.uniform(0.25, 1.6),
            thickness=rng.uniform(0.55, 1.0),
            defocus=rng.uniform(0.01, 0.12),
            grey=rng.uniform(0.1, 0.9),
            sky=rng.uniform(0.0, 0.75),
            slope=rng.uniform(0.0, 1.0),
        )


@dataclass(frozen=True, kw_only=True)
class _Optics:
    """Where each pixel of the picture looks when it lies behind a drop; maps are all H×W."""

    opacity: Field
    gain: Field
    sky: Field
    """Share of sky, 0…1."""
    x: Field
    y: Field

    def refract(self, pixels: Pixels, look: _Look) -> Pixels:
        """The scene seen through the drops, H×W×3."""
        height, width = pixels.shape[:2]
        size = (max(1, width // _REDUCTION), max(1, height // _REDUCTION))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        small = blur(
            np.asarray(small, dtype=np.float32), look.defocus * math.sqrt(size[0] * size[1])
        )
        small += (small.mean(axis=2, keepdims=True) - small) * np.float32(look.grey)
        across = self.x * np.float32(size[0] / width)
        down = self.y * np.float32(size[1] / height)
        view = cv2.remap(small, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        view = view + (_SKY - view) * self.sky[..., None]
        return np.asarray(view * self.gain[..., None], dtype=np.float32)


def _lay_drops(extent: Extent, density: float, look: _Look, rng: np.random.Generator) -> _Optics:
    """Lay drops of many sizes on the glass; `density` 0…1 of the most there can be."""
    shape = (extent.height, extent.width)
    maps = {name: np.zeros(shape, dtype=np.float32) for name in ("opacity", "sky", "x", "y")}
    optics = _Optics(gain=np.ones(shape, dtype=np.float32), **maps)
    typical = look.radius * extent.unit
    # The mean area of a disc whose radius is log-normal is π r² exp(2 spread²).
    area = math.pi * typical**2 * math.exp(2 * look.spread**2)
    covering = _MOST_COVERED * extent.height * extent.width / area
    most = max(1, min(round(covering), extent.count(_MOST_DROPS)))
    centres = rng.random((most, 2)) * (extent.width, extent.height)
    radii = np.clip(
        typical * np.exp(rng.normal(0.0, look.spread, most)), 1.5, 0.2 * max(extent.side, 8.0)
    )
    shapes = rng.random((most, 7))
    for i in range(max(1, round(density * most))):
        _draw_drop(optics, centres[i], float(radii[i]), look, shapes[i])
    return optics


def _draw_drop(
    optics: _Optics,
    centre: NDArray[np.float64],
    radius: float,
    look: _Look,
    shape: NDArray[np.float64],
) -> None:
    """Write one drop into the maps; `shape` holds seven numbers 0…1 that make it individual."""
    height, width = optics.opacity.shape
    edge = 1.0 + 0.5 * look.softness  # where the opacity has fallen to nothing, in radii
    reach = radius * edge * 1.2 / 0.85  # the longest stretch over the deepest dent
    left, top = (max(0, math.floor(c - reach)) for c in centre)
    right, bottom = (
        min(width, math.ceil(centre[0] + reach)),
        min(height, math.ceil(centre[1] + reach)),
    )
    if left >= right or top >= bottom:
        return
    window = np.s_[top:bottom, left:right]
    x = (np.arange(left, right, dtype=np.float32)[None, :] - np.float32(centre[0])) / radius
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(centre[1])) / radius
    distance = _shaped_distance(x, y, shape)
    opacity = np.clip((edge - distance) / np.float32(look.softness), 0.0, 1.0)
    opacity *= opacity * (3.0 - 2.0 * opacity)
    opacity *= np.float32(look.thickness * (0.75 + 0.25 * shape[3]))
    above = opacity > optics.opacity[window]
    # Minus: the image in a drop is upside down. The rim bends light further than the middle.
    reduction = np.float32(0.2 + 0.5 * shape[4]) * (1.0 + 0.6 * distance * distance)
    gain = np.float32(0.9 + 0.25 * shape[5]) - np.float32(0.25 * shape[6]) * distance * distance
    below = np.clip(0.5 + 0.7 * y, 0.0, 1.0)
    sky = np.float32(look.sky) * (1 - np.float32(look.slope) * (1 - below))
    middle = (0.5 * np.array([width, height]) + centre) / 2
    np.copyto(optics.opacity[window], opacity, where=above)
    np.copyto(optics.sky[window], np.broadcast_to(sky, opacity.shape), where=above)
    np.copyto(optics.x[window], np.float32(middle[0]) - x * reduction * width, where=above)
    np.copyto(optics.y[window], np.float32(middle[1]) - y * reduction * height, where=above)
    np.copyto(optics.gain[window], np.maximum(gain, np.float32(0.6)), where=above)


def _shaped_distance(x: Field, y: Field, shape: NDArray[np.float64]) -> Field:
    """Distance from a drop's centre, 1 at its outline: an ellipse, longer downwards, dented."""
    stretch = np.float32(0.85 + 0.35 * shape[0])
    x, y = x * stretch, y / stretch
    radius = np.sqrt(x * x + y * y)
    phase = 2.0 * math.pi * shape[1]
    dent = 1.0 + np.float32(0.15 * shape[2]) * np.cos(3.0 * np.arctan2(y, x) + np.float32(phase))
    return np.asarray(radius * dent, dtype=np.float32)
