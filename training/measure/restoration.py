"""How well pictures are restored: the columns of the paper's Table 1 over a bench, with what each picture got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.progress import track

from training.cache import fingerprint
from training.data.pool import Bytes
from training.measure.benches import FloatPair, Pair
from training.measure.intervals import summary
from vlmir.image import Image
from vlmir.image.color import to_levels
from vlmir.metrics import fidelity, psnr
from vlmir.metrics.perceptual import (
    ALEXNET,
    INCEPTION,
    InceptionFeatures,
    Lpips,
    cached,
    frechet_distance,
)
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

__all__ = ["SETTINGS", "Judges", "measure_bench", "restored_bytes"]

SETTINGS: Mapping[str, RestoreOptions] = MappingProxyType(
    {
        "one-step": RestoreOptions(),
        "ensemble": RestoreOptions(ensemble=True),
        "stochastic": RestoreOptions(realism=1.0, steps=20),
    }
)
"""The default; the most faithful setting; a sample by 20 stochastic steps of the bundle's solver."""

MOST_DB = 100.0
"""PSNR counted for a picture without any error, whose own is infinite, which neither a mean nor JSON can say."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The networks of the perceptual metrics; a metric without its network is not computed."""

    lpips: Lpips | None = None
    inception: InceptionFeatures | None = None

    @classmethod
    def find(cls, lpips_backbone: Path | None, inception: Path | None) -> Judges:
        """Those whose weights are given by path, or lie in PyTorch's cache; nothing is downloaded.

        Raises:
            BundleError: A file is missing or holds something else.
        """
        alexnet, features = lpips_backbone or cached(ALEXNET), inception or cached(INCEPTION)
        return cls(
            lpips=Lpips(alexnet) if alexnet else None,
            inception=InceptionFeatures(features) if features else None,
        )


def measure_bench(
    restorer: Restorer,
    pairs: Sequence[Pair | FloatPair],
    options: RestoreOptions,
    judges: Judges,
    *,
    title: str,
    seeds: int = 1,
) -> dict[str, Any]:
    """Restore every picture of a bench and judge it against its ground truth.

    Args:
        restorer: The system.
        pairs: (LQ, GT), H×W×3; LQ uint8, or float32 that may leave 0…1, as :class:`Restorer` takes it.
        options: The setting. A sample is drawn with each of the ``seeds`` in turn; the mean needs none.
        judges: The perceptual networks there are.
        title: What the progress bar says.
        seeds: Seeds of a sample, at least 1.

    Returns:
        What :func:`training.measure.intervals.summary` gives of ``input_psnr``, the four numbers of
        :class:`vlmir.metrics.Fidelity` and ``lpips``, each the mean over the seeds; ``lpips`` and ``fid`` are None
        where their network is not there (``fid`` also where there are fewer than two pictures). ``seeds``: how many;
        ``psnr_by_seed``: the mean PSNR of each; ``inputs``: a fingerprint of the pairs.
    """
    seeds = seeds if options.realism else 1
    rows: list[list[dict[str, float]]] = []
    truth: list[Any] = []
    restored: list[list[Any]] = [[] for _ in range(seeds)]
    for lq, gt in track(pairs, title):
        start = {"input_psnr": _finite(psnr(lq, gt))}
        outputs = [
            restored_bytes(restorer, lq, replace(options, seed=seed)) for seed in range(seeds)
        ]
        rows.append([start | _judged(output, gt, judges.lpips) for output in outputs])
        if judges.inception:
            truth.append(judges.inception(gt))
            for features, output in zip(restored, outputs, strict=True):
                features.append(judges.inception(output))
    names = rows[0][0]
    return {
        "lpips": None,
        **summary({n: [float(np.mean([s[n] for s in row])) for row in rows] for n in names}),
        "fid": _fid(truth, restored),
        "seeds": seeds,
        "psnr_by_seed": [float(np.mean([row[s]["psnr"] for row in rows])) for s in range(seeds)],
        "inputs": fingerprint([side for pair in pairs for side in pair]),
    }


def restored_bytes(restorer: Restorer, lq: Any, options: RestoreOptions) -> Bytes:
    """One picture restored, rounded to uint8 as it would be saved."""
    # An `Image` holds floats beyond 0…1; an array of levels could not.
    source = lq if lq.dtype == np.uint8 else Image(pixels=lq)
    return np.asarray(to_levels(restorer.restore(source, options).image.pixels, 8), np.uint8)


def _judged(restored: Bytes, gt: Bytes, lpips: Lpips | None) -> dict[str, float]:
    scores = {name: _finite(value) for name, value in asdict(fidelity(restored, gt)).items()}
    return scores | ({"lpips": lpips(restored, gt)} if lpips else {})


def _finite(score: float) -> float:
    return min(score, MOST_DB)


def _fid(truth: list[Any], restored: list[list[Any]]) -> float | None:
    """FID against the ground truth, mean over the seeds."""
    if len(truth) < 2:
        return None
    distances = [frechet_distance(np.stack(features), np.stack(truth)) for features in restored]
    return float(np.mean(distances))
