"""The weights that a sampler serves."""

from __future__ import annotations

import numpy as np

from vlmir.bundle import Bundle
from vlmir.compute import Compute
from vlmir.parts import build_sampler
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish

__all__ = ["load_model", "warm_up"]


def load_model(bundle: Bundle, compute: Compute) -> DiffusionSampler:
    """The sampler of a bundle.

    Raises:
        BundleError: Its files do not fit the preset.
    """
    return build_sampler(bundle, compute)


def warm_up(sampler: DiffusionSampler) -> None:
    """Restore a small grey picture.

    Raises:
        VlmirError: The network produced values that are no numbers.
    """
    grey = np.full((64, 64, 3), 0.5, np.float32)
    plan = Plan(steps=1, solver=sampler.config.solver, realism=0.0, tile=None)
    finish(sampler.sample([grey], [Conditions(None, None, None)], [0], plan))
