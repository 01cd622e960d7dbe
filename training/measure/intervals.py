"""From one number per picture to a mean and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["interval", "summary"]

RESAMPLES = 2000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean, over pictures.

    By the bootstrap's percentiles (Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"): it says how the
    mean would vary with other pictures of the kind. The seed is fixed, so all measures of the same number of pictures
    are resampled alike.

    Args:
        values: One number per picture, at least one.

    Returns:
        Lower and upper bound, in the unit of the values; both the mean where there is one picture.
    """
    data = np.asarray(values, np.float64)
    picked = np.random.default_rng(0).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.percentile(data[picked].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def summary(per_picture: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Measures of the same pictures as they stand in the results.

    Args:
        per_picture: Name of a measure → one number per picture, at least one.

    Returns:
        Each name with its mean; ``pictures``, their number; ``ci95``, name → interval; and ``per_picture`` itself, by
        which two evaluations of the same pictures can be compared pair by pair.
    """
    return {
        **{name: float(np.mean(values)) for name, values in per_picture.items()},
        "pictures": len(next(iter(per_picture.values()))),
        "ci95": {name: list(interval(values)) for name, values in per_picture.items()},
        "per_picture": {name: list(values) for name, values in per_picture.items()},
    }
