"""Other haze over the clean picture of a real hazy pair.

Real pairs know the depth of their scenes, but hold few levels of haze. The scattering model (Koschmieder 1924) says
``hazy = clean · t + A (1 − t)`` with ``t = exp(−β d)``: from a pair follow the airlight A and the transmission t, and
``t^γ`` is the same scene in γ times as dense a haze.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # the pool is made with what is here
    from training.data.pool import Bytes

__all__ = ["airlight", "other_hazes", "rehaze"]

WINDOW = 9
"""Side of the window over which the transmission is fitted, in pixels: depth changes slowly."""

AIRLIGHTS = np.linspace(0.5, 1.0, 51)
"""Grey values tried as the airlight."""


DENSITIES = (0.5, 1.7)
"""Least and greatest density of another haze, over the pair's own."""


def other_hazes(hazy: Bytes, clean: Bytes, count: int, rng: np.random.Generator) -> Iterator[Bytes]:
    """The clean picture of a pair in ``count`` other hazes: each of its own density, some under another airlight.

    Args:
        hazy: H×W×3.
        clean: H×W×3.
        count: How many.
        rng: Chooses.
    """
    A = airlight(hazy, clean)
    for _ in range(count):
        density = float(np.exp(rng.uniform(*np.log(DENSITIES))))
        new_A = A if rng.random() < 0.5 else float(np.clip(A * rng.uniform(0.85, 1.1), 0.65, 1))
        yield rehaze(hazy, clean, A, density=density, new_A=new_A)


def airlight(hazy: Bytes, clean: Bytes) -> float:
    """The grey airlight (0…1) that explains a pair best, each pixel having a transmission of its own.

    Args:
        hazy: H×W×3.
        clean: H×W×3.
    """
    small, truth = (
        cv2.resize(p, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) for p in (hazy, clean)
    )

    def unexplained(A: float) -> float:
        i, j = small / 255 - A, truth / 255 - A
        t = (i * j).sum(-1) / np.maximum((j * j).sum(-1), 1e-6)
        return float(np.square(i - np.clip(t, 0, 1)[..., None] * j).mean())

    return float(min(AIRLIGHTS, key=unexplained))


def rehaze(hazy: Bytes, clean: Bytes, A: float, *, density: float, new_A: float) -> Bytes:
    """The clean picture in ``density`` times as dense a haze (above 0) under the airlight ``new_A`` (0…1).

    Args:
        hazy: H×W×3.
        clean: H×W×3.
        A: The pair's own airlight.
        density: γ.
        new_A: The other airlight.
    """
    t = _transmission(hazy, clean, A)[..., None] ** density
    other = clean / np.float32(255) * t + np.float32(new_A) * (1 - t)
    return np.asarray(np.clip(np.rint(other * 255), 0, 255), np.uint8)


def _transmission(hazy: Bytes, clean: Bytes, A: float) -> npt.NDArray[np.float32]:
    """Transmission t of each pixel, H×W, fitted by least squares over the window around it."""
    i, j = (p / np.float32(255) - np.float32(A) for p in (hazy, clean))
    window = (WINDOW, WINDOW)
    products = cv2.blur((i * j).sum(-1), window)
    squares = cv2.blur((j * j).sum(-1), window)
    return np.asarray(np.clip(products / np.maximum(squares, 1e-4), 0.02, 1), np.float32)
