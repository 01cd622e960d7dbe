"""The table of operators and the two ways to call it: one label, or several together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from vlmir.degradations.codec import jpeg_compressed
from vlmir.degradations.drops import raindrop
from vlmir.degradations.fields import Pixels, quantise
from vlmir.degradations.haze import hazy
from vlmir.degradations.light import shadowed
from vlmir.degradations.masking import uncompleted
from vlmir.degradations.precipitation import rainy, snowy
from vlmir.degradations.sensor import low_light, noisy
from vlmir.degradations.shake import motion_blurry
from vlmir.errors import InputError, OptionError

__all__ = ["LABELS", "degrade", "mixture"]

Operator = Callable[[Pixels, float, np.random.Generator], Pixels]


def _clean(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    del strength, rng
    return pixels


_OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "motion-blurry": motion_blurry,
        "hazy": hazy,
        "jpeg-compressed": jpeg_compressed,
        "low-light": low_light,
        "noisy": noisy,
        "raindrop": raindrop,
        "rainy": rainy,
        "shadowed": shadowed,
        "snowy": snowy,
        "uncompleted": uncompleted,
        "clean": _clean,
    }
)

LABELS: tuple[str, ...] = tuple(_OPERATORS)
"""The degradations by name: ten in the order of DA-CLIP (Luo et al. 2023), and `clean`."""

# The way of the light: scene, air, lens, shutter, sensor, file, damage to the file.
_PHYSICAL_ORDER = (
    "clean",
    "shadowed",
    "hazy",
    "rainy",
    "snowy",
    "raindrop",
    "motion-blurry",
    "low-light",
    "noisy",
    "jpeg-compressed",
    "uncompleted",
)


def degrade(pixels: Pixels, label: str, *, seed: int, strength: float = 0.5) -> Pixels:
    """Make a degraded copy of a picture. The same arguments give the same pixels.

    Args:
        pixels: H×W×3, float32, RGB, 0…1, display-encoded.
        label: One of :data:`LABELS`; `clean` only rounds to 8 bits.
        seed: At least 0; chooses drops, streaks, noise and so on.
        strength: How bad, 0 (mild but visible) over 0.5 (typical) to 1 (severe).

    Returns:
        H×W×3, float32, 0…1, on the 256 levels of an 8-bit file.

    Raises:
        OptionError: The label is unknown, the strength outside 0…1 or the seed negative.
        InputError: The pixels have another shape, type or range.
    """
    return mixture(pixels, (label,), seed=seed, strength=strength)


def mixture(pixels: Pixels, labels: Sequence[str], *, seed: int, strength: float = 0.5) -> Pixels:
    """Degrade a picture in several ways, in the order light meets them: scene, lens, sensor, file.

    The order of `labels` therefore does not matter; each is drawn independently of the others, and
    a single label gives what :func:`degrade` gives.

    Args:
        pixels: H×W×3, float32, RGB, 0…1, display-encoded.
        labels: One or more different members of :data:`LABELS`.
        seed: At least 0.
        strength: As in :func:`degrade`, for every label.

    Returns:
        H×W×3, float32, 0…1, on the 256 levels of an 8-bit file.

    Raises:
        OptionError: A label is missing, unknown or repeated, the strength outside 0…1 or the
            seed negative.
        InputError: The pixels have another shape, type or range.
    """
    _check_options(labels, seed, strength)
    _check_pixels(pixels)
    for label in sorted(labels, key=_PHYSICAL_ORDER.index):
        rng = np.random.default_rng([seed, LABELS.index(label)])
        pixels = quantise(_OPERATORS[label](pixels, strength, rng))
    return pixels


def _check_options(labels: Sequence[str], seed: int, strength: float) -> None:
    for label in labels:
        if label not in _OPERATORS:
            raise OptionError(f"Unknown degradation {label!r}; choose from: {', '.join(LABELS)}.")
    if not labels or len(set(labels)) != len(labels):
        raise OptionError(f"Name one or more different degradations, not {list(labels)}.")
    if not 0.0 <= strength <= 1.0:
        raise OptionError(f"The strength must lie in 0…1, not {strength}.")
    if seed < 0:
        raise OptionError(f"The seed must be 0 or more, not {seed}.")


def _check_pixels(pixels: object) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.float32:
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise InputError(f"The pixels must be a float32 array with values 0…1, not {kind}.")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(f"The pixels must have the shape H×W×3, not {pixels.shape}.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(f"The pixels must lie in 0…1, not {low:g}…{high:g}.")
