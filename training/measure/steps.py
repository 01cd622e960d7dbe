"""Quality against network evaluations: every solver, and the realism dial, on the middle of a few pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.cache import fingerprint
from training.measure.benches import FloatPair, Pair
from training.measure.restoration import Judges, measure_bench
from vlmir.options import SAMPLE_STEPS, RestoreOptions
from vlmir.pipeline import Restorer

__all__ = ["DIAL", "EVALUATIONS", "MEAN", "PICTURES", "SIDE", "centre", "measure_steps"]

SIDE = 256
"""Pixels: so much of each side is kept, since a hundred evaluations of a whole picture take long."""

PICTURES = 4
"""Of each bench, where nobody says how many."""

EVALUATIONS = (1, 2, 4, 8, 16, 32, 100)
"""Of each solver, for a sample (realism 1)."""

DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Realisms, each with as many evaluations as a sample has by default."""

MEAN = RestoreOptions(realism=0.0)
"""The posterior mean, in one evaluation unless the network predicts noise: the line to beat."""


def measure_steps(
    restorer: Restorer, pairs: Sequence[Pair | FloatPair], *, title: str
) -> dict[str, Any]:
    """Restore the middle of every picture of a bench in each way.

    Args:
        restorer: The system.
        pairs: (LQ, GT), H×W×3.
        title: What the progress bars begin with.

    Returns:
        ``psnr`` and ``ssim`` of :data:`MEAN`, ``input_psnr``, means over the pictures; ``evaluations`` of :data:`MEAN`;
        ``pictures`` and ``side``;
        ``solvers``: solver → evaluations (as text) → ``psnr`` and ``ssim`` at realism 1; ``dial``: realism (as text) →
        the same by the bundle's solver; ``inputs``: a fingerprint of the crops.
    """
    crops = [(centre(lq), centre(gt)) for lq, gt in pairs]

    def quality(options: RestoreOptions, what: str) -> dict[str, Any]:
        found = measure_bench(restorer, crops, options, Judges(), title=f"{title}: {what}")
        return {name: found[name] for name in ("input_psnr", "psnr", "ssim")}

    def sample(solver: str, steps: int) -> dict[str, float]:
        options = RestoreOptions(realism=1.0, solver=solver, steps=steps)
        return _two(quality(options, f"{solver}, {steps}"))

    def between(realism: float) -> dict[str, float]:
        options = RestoreOptions(realism=realism, steps=SAMPLE_STEPS if realism else None)
        return _two(quality(options, f"realism {realism}"))

    return {
        **quality(MEAN, "realism 0"),
        "evaluations": restorer.mean_states,
        "pictures": len(crops),
        "side": SIDE,
        "solvers": {
            solver: {str(steps): sample(solver, steps) for steps in EVALUATIONS}
            for solver in restorer.solvers
        },
        "dial": {str(realism): between(realism) for realism in DIAL},
        "inputs": fingerprint([side for pair in crops for side in pair]),
    }


def centre(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The middle of a picture, H×W×3: at most :data:`SIDE` pixels high and wide."""
    top, left = (max(0, size - SIDE) // 2 for size in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + SIDE, left : left + SIDE])


def _two(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in ("psnr", "ssim")}
