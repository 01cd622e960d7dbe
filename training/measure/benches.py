"""The benchmark pictures: pairs of (low-quality, ground truth), H×W×3 RGB, in a fixed order.

All are uint8 but the low-quality side of :data:`UNCLIPPED`, which is float32 around 0…1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt

from training.data.pool import Bytes, degrade_bytes, read_folder
from vlmir.degradations import LABELS

__all__ = [
    "BENCHES",
    "MARGINS",
    "SYNTHETIC",
    "UNCLIPPED",
    "FloatPair",
    "Pair",
    "held_out_labels",
    "jpeg_copy",
    "noisy_copy",
]

Pair = tuple[Bytes, Bytes]
FloatPair = tuple[npt.NDArray[np.float32], Bytes]

SIGMA = 50
QUALITY = 10


def noisy_file(folder: Path) -> Iterator[Pair]:
    """CBSD68 with Gaussian noise σ = 50, clipped and stored as uint8 (protocol `file`), seed = picture number."""
    for seed, gt in _held_out(folder):
        yield noisy_copy(gt, seed), gt


def noisy_float(folder: Path) -> Iterator[FloatPair]:
    """The same noise neither clipped nor rounded (protocol `float`, that of the denoising literature)."""
    for seed, gt in _held_out(folder):
        yield (_with_noise(gt, seed) / 255).astype(np.float32), gt


def noisy_copy(gt: Bytes, seed: int) -> Bytes:
    """Gaussian noise σ = 50, clipped and rounded to uint8."""
    return np.clip(np.round(_with_noise(gt, seed)), 0, 255).astype(np.uint8)


def _with_noise(gt: Bytes, seed: int) -> npt.NDArray[np.float64]:
    """Gaussian noise σ = 50 on the scale 0…255, which it leaves on both sides."""
    return gt + np.random.default_rng(seed).normal(0, SIGMA, gt.shape)


def _held_out(folder: Path) -> Iterator[tuple[int, Bytes]]:
    """CBSD68's clean photos, never trained on, with their numbers."""
    yield from enumerate(read_folder(folder / "noisy_cbsd68" / "gt"))


def paired(name: str) -> Callable[[Path], Iterator[Pair]]:
    """A bench that is stored as pairs, ``<name>/{lq,gt}``."""

    def pairs(folder: Path) -> Iterator[Pair]:
        lq, gt = (read_folder(folder / name / side) for side in ("lq", "gt"))
        yield from zip(lq, gt, strict=True)

    return pairs


def damaged(label: str) -> Callable[[Path], Iterator[Pair]]:
    """CBSD68's photos with one synthetic damage of typical strength (0.5), seed = picture number."""

    def pairs(folder: Path) -> Iterator[Pair]:
        for seed, gt in _held_out(folder):
            yield degrade_bytes(gt, label, seed=seed, strength=0.5), gt

    return pairs


def compressed(folder: Path) -> Iterator[Pair]:
    """CBSD68's photos as JPEG of quality 10."""
    for _, gt in _held_out(folder):
        yield jpeg_copy(gt), gt


def jpeg_copy(gt: Bytes) -> Bytes:
    """A JPEG of quality 10 with colour at half resolution (4:2:0), as OpenCV writes it by default, decoded."""
    levels = cv2.cvtColor(gt, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


BENCHES: Mapping[str, Callable[[Path], Iterator[Pair]]] = MappingProxyType(
    {
        "CBSD68 σ=50": noisy_file,
        "SOTS-indoor": paired("hazy_sots_indoor"),
        "Rain100H": paired("rainy_rain100h"),
        "RainDrop": paired("raindrop"),
    }
)
"""Name → its pairs, read from the folder of benchmarks."""

UNCLIPPED: Mapping[str, Callable[[Path], Iterator[FloatPair]]] = MappingProxyType(
    {"CBSD68 σ=50 float": noisy_float}
)
"""Benches whose low-quality pictures no 8-bit file can hold."""

SYNTHETIC: Mapping[str, Callable[[Path], Iterator[Pair]]] = MappingProxyType(
    {
        "JPEG q10": compressed,
        "low light": damaged("low-light"),
        "blur": damaged("motion-blurry"),
        "snow": damaged("snowy"),
        "shadow": damaged("shadowed"),
        "drops": damaged("raindrop"),
        "inpainting": damaged("uncompleted"),
    }
)
"""Held-out synthetic sets, for the damages of which no real pairs are at hand."""

MARGINS: Mapping[str, float] = MappingProxyType(
    {
        "JPEG q10": 0.4,
        "low light": 8.0,
        "blur": 0.1,
        "snow": 4.0,
        "shadow": 0.5,
        "drops": 0.1,
        "inpainting": 2.0,
    }
)
"""By how many dB of mean PSNR the default restoration of a synthetic set must at least be above its input.

They are floors that tell a working release from a broken one; for blur and drops `tiny` gains little yet.
"""


def held_out_labels(folder: Path, labels: Collection[str]) -> Iterator[tuple[str, Bytes]]:
    """(label, picture): each CBSD68 photo, never trained on, with every one of ``labels`` at a random strength.

    A damaged picture is the same whatever other labels are asked for; they come in the order of
    :data:`vlmir.degradations.LABELS`.
    """
    for number, gt in _held_out(folder):
        rng = np.random.default_rng(number)
        for label in LABELS:
            strength = float(rng.uniform(0.2, 1))
            if label in labels:
                yield label, degrade_bytes(gt, label, seed=number, strength=strength)
