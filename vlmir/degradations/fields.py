"""Shared ground of the operators: pixel type, physical scale, smooth random fields, light curves.

Lengths are written for a reference photo of 481×321 pixels and multiplied by :attr:`Extent.unit`,
so that a thumbnail and a 24-megapixel photo of one scene show the same rain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Extent",
    "Field",
    "Pixels",
    "blur",
    "lerp",
    "line_kernel",
    "quantise",
    "smooth_field",
    "to_display",
    "to_linear",
]

Pixels = NDArray[np.float32]
"""H×W×3, RGB, 0…1, display-encoded unless said otherwise."""
Field = NDArray[np.float32]
"""H×W, a mask, depth or brightness, 0…1 unless said otherwise."""

_REFERENCE_SIDE = math.sqrt(481 * 321)
_SMALLEST_UNIT = 0.5  # below half a pixel a streak or flake could no longer be drawn


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How large a picture is against the reference photo."""

    height: int
    width: int

    @classmethod
    def of(cls, pixels: Pixels) -> Extent:
        """The extent of an H×W×3 picture."""
        return cls(height=pixels.shape[0], width=pixels.shape[1])

    @property
    def side(self) -> float:
        """Geometric mean of height and width, pixels."""
        return math.sqrt(self.height * self.width)

    @property
    def unit(self) -> float:
        """Pixels here for one pixel of the reference photo, at least 0.5."""
        return max(self.side / _REFERENCE_SIDE, _SMALLEST_UNIT)

    def count(self, reference_count: float) -> int:
        """Objects to draw for `reference_count` in the reference photo, at least 1.

        Fewer only where :attr:`unit` met its floor: then objects cannot shrink with the picture.
        """
        share = (self.side / _REFERENCE_SIDE / self.unit) ** 2
        return max(1, round(reference_count * share))


def lerp(mild: float, severe: float, strength: float) -> float:
    """`mild` at strength 0, `severe` at strength 1, linear between."""
    return mild + (severe - mild) * strength


def quantise(pixels: Pixels) -> Pixels:
    """Clip to 0…1 and round to the 256 levels of an 8-bit file; H×W×3 to H×W×3."""
    levels = np.rint(np.clip(pixels, 0.0, 1.0) * np.float32(255.0))
    return np.asarray(levels / np.float32(255.0), dtype=np.float32)


def to_linear(pixels: Pixels) -> Pixels:
    """Display-encoded sRGB to linear light, IEC 61966-2-1; any shape, 0…1."""
    curve = cv2.pow((pixels + np.float32(0.055)) / np.float32(1.055), 2.4)
    return np.where(pixels <= 0.04045, pixels / np.float32(12.92), curve).astype(np.float32)


def to_display(light: Pixels) -> Pixels:
    """Linear light to display-encoded sRGB, IEC 61966-2-1; values are clipped to 0…1 first."""
    light = np.clip(light, 0.0, 1.0)
    curve = np.float32(1.055) * cv2.pow(light, 1 / 2.4) - np.float32(0.055)
    return np.where(light <= 0.0031308, light * np.float32(12.92), curve).astype(np.float32)


def blur(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur, `sigma` in pixels; H×W or H×W×3. A sigma under 0.2 changes nothing.

    Wide blurs run on a reduced copy: what they remove cannot be seen, and the cost stays bounded.
    """
    if sigma < 0.2:
        return values
    shrink = int(sigma // 4)
    if shrink < 2:
        return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), dtype=np.float32)
    height, width = values.shape[:2]
    small_size = (max(1, width // shrink), max(1, height // shrink))
    small = cv2.resize(values, small_size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, dtype=np.float32)


def smooth_field(extent: Extent, cells: int, rng: np.random.Generator) -> Field:
    """Random low-frequency field, H×W, normalised to 0…1; `cells` bumps along the longer side."""
    longer = max(extent.height, extent.width)
    rows = max(2, round(cells * extent.height / longer)) + 1
    columns = max(2, round(cells * extent.width / longer)) + 1
    grid = rng.random((rows, columns), dtype=np.float32)
    field = cv2.resize(grid, (extent.width, extent.height), interpolation=cv2.INTER_CUBIC)
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / max(high - low, 1e-6), dtype=np.float32)


def line_kernel(length: float, angle: float, bend: float = 0.0) -> Field:
    """Point-spread function of a straight or bent camera path, K×K with K odd, sum 1.

    Args:
        length: Path length in pixels.
        angle: Direction in radians from the x axis.
        bend: Sideways offset of the path's middle, as a fraction of the length.
    """
    side = 2 * math.ceil(length / 2 + 1) + 1
    along = np.linspace(-0.5, 0.5, 17)
    across = bend * (1.0 - 4.0 * along**2)
    across -= across.mean()
    x = (along * math.cos(angle) - across * math.sin(angle)) * length + side // 2
    y = (along * math.sin(angle) + across * math.cos(angle)) * length + side // 2
    path = np.rint(np.stack([x, y], axis=-1) * 16).astype(np.int32)
    kernel = np.zeros((side, side), dtype=np.uint8)
    cv2.polylines(kernel, [path], False, 255, 1, cv2.LINE_AA, 4)
    return np.asarray(kernel / max(1.0, float(kernel.sum())), dtype=np.float32)
