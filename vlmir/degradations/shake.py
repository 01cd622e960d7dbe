"""What happens while the shutter is open: camera shake."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vlmir.degradations.fields import Extent, Pixels, lerp, line_kernel, to_display, to_linear

__all__ = ["motion_blurry"]


def motion_blurry(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Blur along a straight or slightly bent camera path, 7 to 31 px long in the reference photo.

    Exposure adds up light, so the blur is taken in linear light.
    """
    length = lerp(7.0, 31.0, strength) * Extent.of(pixels).unit
    kernel = line_kernel(length, rng.uniform(0.0, math.pi), rng.normal(0.0, 0.12))
    light = cv2.filter2D(to_linear(pixels), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return to_display(np.asarray(light, dtype=np.float32))
