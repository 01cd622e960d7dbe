"""What must not change a restored picture: its neighbours in a batch, tiling, and being clean to begin with."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from training.measure.benches import BENCHES, noisy_copy
from vlmir.bundle import Bundle, load_bundle
from vlmir.compute import REFERENCE
from vlmir.image.color import to_float
from vlmir.metrics import psnr
from vlmir.options import RestoreOptions
from vlmir.parts import build_embedder, build_sampler
from vlmir.pipeline import Restorer
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish

__all__ = ["measure_consistency", "together_and_alone"]

NOISY = "CBSD68 σ=50"
STEPS = 8

Pixels = npt.NDArray[np.float32]


def measure_consistency(restorer: Restorer, bench: Path, bundle: str) -> dict[str, float]:
    """Batches and tiles against the picture alone, and what is left of clean photos.

    Args:
        restorer: With the bundle's weights.
        bench: The folder of benchmarks.
        bundle: Name or folder of the weights.

    Returns:
        ``batch_difference``: see :func:`together_and_alone`, float32, all solvers, greatest difference; 0…1.
        ``batch_psnr_bf16``: the same in bfloat16 with the default solver, dB. ``bf16_psnr``: the same pictures in one
        evaluation, bfloat16 against float32, dB. ``tiled_psnr``: a noisy 512² photo in
        tiles of 256 against whole, 8 stochastic steps, dB. ``clean_psnr_median``, ``clean_above_40_db``: clean photos
        restored like any other, dB and share.
    """
    opened = load_bundle(bundle)
    pictures, conditions = _noisy_batch(opened, bench, side=320)
    sampler, half = (_sampler(opened, dtype) for dtype in (torch.float32, torch.bfloat16))
    pairs = [together_and_alone(sampler, pictures, conditions, name) for name in sampler.solvers]
    small = [picture[:96, :96] for picture in pictures]
    in_half = together_and_alone(half, small, conditions, half.config.solver)
    means = [_means(one, pictures, conditions) for one in (half, sampler)]
    clean = _clean_photos(restorer, bench)
    return {
        "batch_difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "batch_psnr_bf16": _decibels(*in_half),
        "bf16_psnr": _decibels(*means),
        "tiled_psnr": _tiled(restorer),
        "clean_psnr_median": float(np.median(clean)),
        "clean_above_40_db": float(np.mean(np.array(clean) >= 40)),
    }


def together_and_alone(
    sampler: DiffusionSampler, pictures: list[Pixels], conditions: list[Conditions], solver: str
) -> tuple[Pixels, Pixels]:
    """Pictures restored in one batch, and each alone by the same seed, one below the other: (B·H)×W×3 twice, 0…1."""
    plan = Plan(steps=STEPS, solver=solver, realism=1.0, tile=0)
    seeds = list(range(len(pictures)))
    together = finish(sampler.sample(pictures, conditions, seeds, plan))
    alone = [
        finish(sampler.sample([picture], [condition], [seed], plan))[0]
        for picture, condition, seed in zip(pictures, conditions, seeds, strict=True)
    ]
    return np.concatenate(together), np.concatenate(alone)


def _decibels(first: Pixels, second: Pixels) -> float:
    """PSNR of whole pictures, at most 100 dB: equal ones would be infinitely alike, which JSON cannot say."""
    return min(psnr(first, second, crop=0), 100.0)


def _means(
    sampler: DiffusionSampler, pictures: list[Pixels], conditions: list[Conditions]
) -> Pixels:
    """Pictures restored in one evaluation, one below the other."""
    plan = Plan(steps=1, solver=sampler.config.solver, realism=0.0, tile=0)
    return np.concatenate(finish(sampler.sample(pictures, conditions, [0] * len(pictures), plan)))


def _sampler(bundle: Bundle, dtype: torch.dtype) -> DiffusionSampler:
    return build_sampler(bundle, replace(REFERENCE, dtype=dtype))


def _noisy_batch(bundle: Bundle, bench: Path, side: int) -> tuple[list[Pixels], list[Conditions]]:
    """Four noisy photos cut to one size, and their conditions."""
    embedder = build_embedder(bundle)
    pictures = [to_float(lq)[:side, :side] for lq, _ in islice(BENCHES[NOISY](bench), 4)]
    seen = [embedder.embed_image(picture) for picture in pictures]
    conditions = [Conditions(None, one.f_I, one.f_D) for one in seen]
    return pictures, conditions


def _tiled(restorer: Restorer) -> float:
    from skimage.data import astronaut

    lq = noisy_copy(np.ascontiguousarray(astronaut()), seed=0)  # type: ignore[no-untyped-call]
    whole, tiled = (
        restorer.restore(lq, RestoreOptions(tile=tile, steps=STEPS, realism=1.0)).image.pixels
        for tile in (0, 256)
    )
    return _decibels(tiled, whole)


def _clean_photos(restorer: Restorer, bench: Path) -> list[float]:
    photos = [gt for _, gt in BENCHES[NOISY](bench)]
    return [
        _decibels(restorer.restore(gt).image.pixels, to_float(gt))
        for gt in track(photos, "clean photos")
    ]
