"""What a picture costs from pixels to pixels, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.bench.timing import in_turns, median_ratio
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.options import Precision, RestoreOptions
from vlmir.pipeline import Restorer

__all__ = ["SIDES", "SIZES", "WAYS", "measure_growth", "measure_reference", "measure_restoring"]

SIZES: Sequence[tuple[int, int]] = ((256, 256), (321, 481), (1024, 1024))
"""Height and width of the pictures."""

SIDES: Sequence[int] = (1024, 2048, 4096)
"""Of square pictures of more than one tile, each of four times as many pixels as the one before."""

WAYS: Mapping[str, RestoreOptions] = MappingProxyType(
    {
        "default": RestoreOptions(degradation="noisy"),
        "ensemble": RestoreOptions(degradation="noisy", ensemble=True),
        "realism 1": RestoreOptions(degradation="noisy", realism=1.0),
    }
)
"""What a user would ask for."""

REFERENCE = RestoreOptions(
    degradation="noisy", realism=1.0, solver="posterior", steps=100, tile=0, use_caption=False
)
"""The published procedure (DA-CLIP): this many posterior steps in float32, no tiles."""

REFERENCE_SIDE = 256


def measure_restoring(
    bundle: str, *, device: str, precision: Precision, rounds: int
) -> dict[str, dict[str, float]]:
    """Restore pictures in the ways of :data:`WAYS`, in turns, captions and embeddings included.

    Args:
        bundle: Name or folder of the weights.
        device: Where the sampler runs.
        precision: Of the sampler.
        rounds: At least 1.

    Returns:
        ``481×321, default`` and the like → ``ms`` (median), ``megapixels_per_s``, and ``sampling``, the share of the
        time that the sampler takes.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        OptionError: The device cannot be used.
    """
    where = Compute.choose(device, precision).device
    restorer = Restorer.load(bundle, device=device, precision=precision)
    found: dict[str, dict[str, float]] = {}
    for height, width in SIZES:
        picture, shares = _picture(height, width), dict[str, list[float]]()
        ways = {name: partial(_restore, restorer, picture, name, shares) for name in WAYS}
        for name, times in in_turns(ways, rounds=rounds, device=where).items():
            seconds = statistics.median(times)
            found[f"{width}×{height}, {name}"] = {
                "ms": 1e3 * seconds,
                "megapixels_per_s": height * width / 1e6 / seconds,
                "sampling": statistics.median(shares[name]),
            }
    return found


def measure_growth(
    bundle: str, *, device: str, precision: Precision, rounds: int, sides: Sequence[int] = SIDES
) -> dict[str, dict[str, float]]:
    """Restore pictures of growing size by the default, in turns: time should be linear in pixels.

    Args:
        bundle: Name or folder of the weights.
        device: Where the sampler runs.
        precision: Of the sampler.
        rounds: At least 1.
        sides: Of the pictures, the smallest first.

    Returns:
        ``1024²`` and the like → ``s_per_megapixel`` (median), and ``times_the_first``, the median over the rounds of
        its time per pixel over that of the first size.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        OptionError: The device cannot be used.
    """
    where = Compute.choose(device, precision).device
    restorer = Restorer.load(bundle, device=device, precision=precision)
    ways = {
        f"{side}²": partial(restorer.restore, _picture(side, side), WAYS["default"])
        for side in sides
    }
    taken = in_turns(ways, rounds=rounds, device=where)
    costs = [
        [seconds / (side**2 / 1e6) for seconds in times]
        for side, times in zip(sides, taken.values(), strict=True)
    ]
    return {
        name: {
            "s_per_megapixel": statistics.median(cost),
            "times_the_first": median_ratio(cost, costs[0]),
        }
        for name, cost in zip(ways, costs, strict=True)
    }


def measure_reference(bundle: str, *, device: str, precision: Precision) -> dict[str, float]:
    """The published procedure with the same weights against the default setting, each once after an untimed call.

    Args:
        bundle: Name or folder of the weights.
        device: Where the samplers run.
        precision: Of the default's sampler.

    Returns:
        ``reference_ms``, ``ms``, and ``times_faster``, for a picture of 256².

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        OptionError: The device cannot be used.
    """
    opened = load_bundle(bundle)
    plain = Restorer.from_bundle(opened, device=device, precision="fp32")
    chosen = Restorer.from_bundle(opened, device=device, precision=precision)
    picture = _picture(REFERENCE_SIDE, REFERENCE_SIDE)
    ways = {
        "reference": partial(plain.restore, picture, REFERENCE),
        "default": partial(chosen.restore, picture, WAYS["default"]),
    }
    taken = in_turns(ways, rounds=1, device=Compute.choose(device, precision).device)
    return {
        "reference_ms": 1e3 * taken["reference"][0],
        "ms": 1e3 * taken["default"][0],
        "times_faster": median_ratio(taken["reference"], taken["default"]),
    }


def _restore(
    restorer: Restorer, picture: npt.NDArray[Any], way: str, shares: dict[str, list[float]]
) -> None:
    stages = restorer.restore(picture, WAYS[way]).report.milliseconds
    shares.setdefault(way, []).append(stages["sample"] / sum(stages.values()))


def _picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A smooth scene under noise of σ = 50: flat noise would be no picture to a captioner."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    scene = np.stack([rows, columns, 0.5 + 0.5 * np.sin(9 * rows + 5 * columns)], axis=2)
    noise = np.random.default_rng(0).normal(0, 50, scene.shape)
    return np.clip(255 * scene + noise, 0, 255).astype(np.uint8)
