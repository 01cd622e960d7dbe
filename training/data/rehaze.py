"""Other haze over clean pictures, by what real hazy pairs know of the depth of their scenes.

Real pairs hold few scenes and few levels of haze. The scattering model (Koschmieder 1924) says
``hazy = clean · t + A (1 − t)`` with ``t = exp(−β d)``: from a pair follow the airlight A and the transmission t. Then
``t^γ`` is the same scene in γ times as dense a haze; the scene may be painted otherwise under the same haze; and the
haze of one scene may lie before another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # the pool is made with what is here
    from training.data.pool import Bytes

__all__ = ["airlight", "fitted", "haze_over", "other_hazes", "repainted", "transmission"]

Floats = npt.NDArray[np.float32]

WINDOW = 9
"""Side of the window over which the transmission is fitted, in pixels: depth changes slowly."""

AIRLIGHTS = np.linspace(0.5, 1.0, 51)
"""Grey values tried as the airlight."""

LEAST = 0.02
"""Least transmission: behind denser haze nothing is left to restore in eight bits."""

DENSITIES = (0.5, 1.7)
"""Least and greatest density of another haze, over the pair's own."""

FIT_RADIUS = 24
"""Half the side of the window in which a foreign transmission follows the picture's own edges, in pixels."""

FIT_EDGE = 0.02
"""Squared difference in grey (0…1) that counts as an edge where a transmission is fitted."""


def other_hazes(hazy: Bytes, clean: Bytes, count: int, rng: np.random.Generator) -> Iterator[Bytes]:
    """The clean picture of a pair in ``count`` other hazes: each of its own density, some under another airlight.

    Args:
        hazy: H×W×3.
        clean: H×W×3.
        count: How many.
        rng: Chooses.
    """
    A = airlight(hazy, clean)
    t = transmission(hazy, clean, A)
    for _ in range(count):
        density = float(np.exp(rng.uniform(*np.log(DENSITIES))))
        new_A = A if rng.random() < 0.5 else float(np.clip(A * rng.uniform(0.85, 1.1), 0.65, 1))
        yield haze_over(clean, t**density, new_A)


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


def transmission(hazy: Bytes, clean: Bytes, A: float) -> Floats:
    """Transmission t of each pixel of a pair (H×W, 0…1), fitted by least squares over the window around it.

    Args:
        hazy: H×W×3.
        clean: H×W×3.
        A: The pair's airlight.
    """
    i, j = (p / np.float32(255) - np.float32(A) for p in (hazy, clean))
    window = (WINDOW, WINDOW)
    products = cv2.blur((i * j).sum(-1), window)
    squares = cv2.blur((j * j).sum(-1), window)
    return np.asarray(np.clip(products / np.maximum(squares, 1e-4), LEAST, 1), np.float32)


def haze_over(clean: Bytes, t: Floats, A: float) -> Bytes:
    """A clean picture in haze.

    Args:
        clean: H×W×3.
        t: Transmission, H×W, 0…1.
        A: Grey airlight, 0…1.
    """
    t = t[..., None]
    hazy = clean * t + np.float32(255 * A) * (1 - t)
    return np.asarray(np.clip(np.rint(hazy), 0, 255), np.uint8)


def fitted(t: Floats, clean: Bytes) -> Floats:
    """The transmission of another scene, bent to the edges of this one, where depth mostly changes.

    By the guided filter (He, Sun and Tang 2010) with the picture's grey as the guide.

    Args:
        t: H×W, 0…1.
        clean: H×W×3.
    """
    grey = cv2.cvtColor(clean, cv2.COLOR_RGB2GRAY) / np.float32(255)
    window = (2 * FIT_RADIUS + 1, 2 * FIT_RADIUS + 1)
    mean_grey, mean_t = cv2.blur(grey, window), cv2.blur(t, window)
    covariance = cv2.blur(grey * t, window) - mean_grey * mean_t
    variance = cv2.blur(grey * grey, window) - mean_grey * mean_grey
    slope = covariance / (variance + np.float32(FIT_EDGE))
    offset = mean_t - slope * mean_grey
    bent = cv2.blur(slope, window) * grey + cv2.blur(offset, window)
    return np.asarray(np.clip(bent, LEAST, 1), np.float32)


def repainted(clean: Bytes, rng: np.random.Generator) -> Bytes:
    """The same scene in other colours and other light: a stand-in for scenes that there are no pairs of.

    Args:
        clean: H×W×3.
        rng: Chooses gain, colour, saturation, gamma, and where more light falls.
    """
    picture = clean / np.float32(255)
    gain = np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.05, 3)).astype(np.float32)
    gamma = np.float32(np.exp(rng.uniform(-0.35, 0.35)))
    picture = np.power(picture * _light(clean.shape[:2], rng), gamma) * gain
    grey = picture.mean(axis=-1, keepdims=True)
    picture = grey + (picture - grey) * np.float32(rng.uniform(0.5, 1.4))
    return np.asarray(np.clip(np.rint(picture * 255), 0, 255), np.uint8)


def _light(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Slowly changing light around 1, H×W×1."""
    knots = rng.normal(0, rng.uniform(0, 0.25), (4, 4)).astype(np.float32)
    field = cv2.resize(knots, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.exp(field)[..., None], np.float32)
