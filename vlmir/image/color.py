"""Numbers of colour: integer levels against 0…1, and the two lumas in use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import ImageError

__all__ = ["luma", "luma_studio", "to_float", "to_levels"]

_BT601 = (0.299, 0.587, 0.114)
_BT601_STUDIO = (65.481, 128.553, 24.966)


def to_float(levels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Integer levels to display-encoded floats.

    Args:
        levels: uint8 (0…255) or uint16 (0…65535), any shape.

    Returns:
        float32 in 0…1, same shape; exactly undone by `to_levels`.

    Raises:
        ImageError: The array is of another type.
    """
    if levels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"Samples must be uint8 or uint16, not {levels.dtype}.")
    top = np.float32(np.iinfo(levels.dtype).max)
    values: npt.NDArray[np.float32] = np.divide(levels, top, dtype=np.float32)
    return values


def to_levels(values: npt.NDArray[np.floating[Any]], bit_depth: int) -> npt.NDArray[Any]:
    """Floats to the nearest integer level; what lies outside 0…1 is clipped.

    Args:
        values: Floats, nominally 0…1, any shape.
        bit_depth: 8 or 16.

    Returns:
        uint8 or uint16, same shape.

    Raises:
        ImageError: A value is not finite. Casting it would silently give a black or white pixel.
    """
    scaled = values * np.float32(2**bit_depth - 1)
    # The sum is finite only if all terms are: one pass, no mask in memory.
    if not np.isfinite(np.sum(scaled, dtype=np.float64)):
        raise ImageError("The pixels hold NaN or infinite values, so there is no picture to write.")
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 2**bit_depth - 1, out=scaled)
    return scaled.astype(np.uint8 if bit_depth == 8 else np.uint16)


def luma(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Full-range BT.601 luma of H×W×3 RGB: H×W, the same range; equal channels stay as they are."""
    return pixels @ np.array(_BT601, dtype=np.float32)


def luma_studio(pixels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """BT.601 studio-swing Y' of RGB, not rounded.

    Args:
        pixels: …×3 RGB, 0…1.

    Returns:
        …, float64, 16 (black) … 235 (white).
    """
    weighted: npt.NDArray[np.float64] = pixels.astype(np.float64) @ np.array(_BT601_STUDIO)
    return weighted + 16.0
