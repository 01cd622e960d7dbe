"""PSNR and SSIM on RGB and on luma, by the protocol of the IR-SDE and DA-CLIP papers.

Pictures are compared on the scale 0…255 after cutting a border of 4 pixels. SSIM (Wang et al.,
"Image Quality Assessment: From Error Visibility to Structural Similarity", 2004) uses an 11×11
Gaussian window of σ 1.5, only where it lies wholly inside the picture, and averages over channels.
Luma is BT.601, 16…235, not rounded.

All pictures here are H×W×3 RGB, either uint8 or floats in 0…1 (which are not rounded); both of a
pair have the same size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import InputError
from vlmir.image.color import luma_studio

__all__ = ["Fidelity", "fidelity", "psnr", "psnr_y", "ssim", "ssim_y"]

_CROP = 4
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """The four numbers of one pair."""

    psnr: float
    """dB; infinite for equal pictures."""

    ssim: float
    """At most 1."""

    psnr_y: float
    """dB, of luma."""

    ssim_y: float
    """At most 1, of luma."""


def fidelity(
    restored: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8], crop: int = _CROP
) -> Fidelity:
    """All four numbers of the protocol.

    Args:
        restored: H×W×3 uint8, as it would be saved.
        reference: H×W×3 uint8, the true picture.
        crop: Border left out on each side, pixels.

    Raises:
        InputError: Shapes differ, types are wrong, or less than 11×11 remains after cropping.
    """
    return Fidelity(
        psnr=psnr(restored, reference, crop=crop),
        ssim=ssim(restored, reference, crop=crop),
        psnr_y=psnr_y(restored, reference, crop=crop),
        ssim_y=ssim_y(restored, reference, crop=crop),
    )


def psnr(restored: npt.NDArray[Any], reference: npt.NDArray[Any], *, crop: int = _CROP) -> float:
    """Peak signal-to-noise ratio over RGB, dB; infinite for equal pictures.

    Raises:
        InputError: Shapes differ, types are wrong, or nothing remains after cropping.
    """
    return _psnr(*(255 * picture for picture in _prepare(restored, reference, crop, 1)))


def psnr_y(restored: npt.NDArray[Any], reference: npt.NDArray[Any], *, crop: int = _CROP) -> float:
    """Peak signal-to-noise ratio of luma, dB, with the peak at 255.

    Raises:
        InputError: As `psnr`.
    """
    return _psnr(*map(luma_studio, _prepare(restored, reference, crop, 1)))


def ssim(restored: npt.NDArray[Any], reference: npt.NDArray[Any], *, crop: int = _CROP) -> float:
    """Structural similarity, mean over the channels of RGB.

    Raises:
        InputError: Shapes differ, types are wrong, or less than 11×11 remains after cropping.
    """
    first, second = (255 * picture for picture in _prepare(restored, reference, crop, _WINDOW))
    return sum(_ssim(first[..., c], second[..., c]) for c in range(3)) / 3


def ssim_y(restored: npt.NDArray[Any], reference: npt.NDArray[Any], *, crop: int = _CROP) -> float:
    """Structural similarity of luma.

    Raises:
        InputError: As `ssim`.
    """
    return _ssim(*map(luma_studio, _prepare(restored, reference, crop, _WINDOW)))


def _prepare(
    restored: npt.NDArray[Any], reference: npt.NDArray[Any], crop: int, least: int
) -> tuple[_Floats, _Floats]:
    """Both cropped, on 0…1."""
    if restored.shape != reference.shape or restored.ndim != 3 or restored.shape[2] != 3:
        raise InputError(
            f"Both pictures must be H×W×3 of one size, not {restored.shape} and {reference.shape}."
        )
    height, width, _ = restored.shape
    if crop < 0 or min(height, width) - 2 * crop < least:
        raise InputError(
            f"A picture of {height}×{width} is too small: after cropping {crop} pixels on each "
            f"side at least {least}×{least} must remain."
        )
    inside = np.s_[crop : height - crop, crop : width - crop]
    return _unit(restored[inside]), _unit(reference[inside])


def _unit(picture: npt.NDArray[Any]) -> _Floats:
    if picture.dtype == np.uint8:
        return picture / 255.0
    if np.issubdtype(picture.dtype, np.floating):
        return picture.astype(np.float64)
    raise InputError(f"Pictures must be uint8 or floats in 0…1, not {picture.dtype}.")


def _psnr(first: _Floats, second: _Floats) -> float:
    error = float(np.mean((first - second) ** 2))
    return 20 * math.log10(255 / math.sqrt(error)) if error else math.inf


def _ssim(first: _Floats, second: _Floats) -> float:
    """SSIM (eq. 13 of the paper) of two H×W channels on 0…255, mean over the valid pixels."""
    # The two variances enter only as their sum: four blurred maps do instead of five.
    mean_1, mean_2 = _blur(first), _blur(second)
    product = mean_1 * mean_2
    squares = mean_1**2 + mean_2**2
    variances = _blur(first**2 + second**2) - squares
    covariance = _blur(first * second) - product
    numerator = (2 * product + _C1) * (2 * covariance + _C2)
    return float(np.mean(numerator / ((squares + _C1) * (variances + _C2))))


def _blur(channel: _Floats) -> _Floats:
    """Gaussian mean where the window fits: H×W to (H-10)×(W-10)."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    height, width = (side - _WINDOW + 1 for side in channel.shape)
    rows: _Floats = sum(k * channel[i : i + height] for i, k in enumerate(kernel))
    columns: _Floats = sum(k * rows[:, i : i + width] for i, k in enumerate(kernel))
    return columns
