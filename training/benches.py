"""The benchmark pictures: pairs of (low-quality, ground truth), H×W×3 uint8 RGB, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from training.pool import Bytes, degrade_bytes, read_folder
from vlmir.degradations import LABELS

__all__ = ["BENCHES", "Pair", "held_out_labels", "noisy_copy"]

Pair = tuple[Bytes, Bytes]

SIGMA = 50


def noisy_file(folder: Path) -> Iterator[Pair]:
    """CBSD68 with Gaussian noise σ = 50, clipped and stored as uint8 (protocol `file`), seed = picture number."""
    for seed, gt in enumerate(read_folder(folder / "noisy_cbsd68" / "gt")):
        yield noisy_copy(gt, seed), gt


def noisy_copy(gt: Bytes, seed: int) -> Bytes:
    """Gaussian noise σ = 50, clipped and rounded to uint8."""
    noise = np.random.default_rng(seed).normal(0, SIGMA, gt.shape)
    return np.clip(np.round(gt + noise), 0, 255).astype(np.uint8)


def paired(name: str) -> Callable[[Path], Iterator[Pair]]:
    """A bench that is stored as pairs, ``<name>/{lq,gt}``."""

    def pairs(folder: Path) -> Iterator[Pair]:
        lq, gt = (read_folder(folder / name / side) for side in ("lq", "gt"))
        yield from zip(lq, gt, strict=True)

    return pairs


BENCHES: Mapping[str, Callable[[Path], Iterator[Pair]]] = MappingProxyType(
    {
        "CBSD68 σ=50": noisy_file,
        "SOTS-indoor": paired("hazy_sots_indoor"),
        "Rain100H": paired("rainy_rain100h"),
        "RainDrop": paired("raindrop"),
    }
)
"""Name → its pairs, read from the folder of benchmarks."""


def held_out_labels(folder: Path) -> Iterator[tuple[str, Bytes]]:
    """(label, picture): each CBSD68 photo, never trained on, with every label at a random strength."""
    for number, gt in enumerate(read_folder(folder / "noisy_cbsd68" / "gt")):
        rng = np.random.default_rng(number)
        for label in LABELS:
            strength = float(rng.uniform(0.2, 1))
            yield label, degrade_bytes(gt, label, seed=number, strength=strength)
