"""How much is wrong with a picture, in a few numbers: what f_D is to say beside the label.

A sampler that sees a tile, or the few hundred pixels its convolutions reach, cannot know how dense the haze of the
whole picture is, or how dark its shadows were; the controller sees the whole picture, reduced.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.data.pool import Bytes

__all__ = ["SEVERITIES", "severity"]

SEVERITIES = 6
"""How many numbers there are."""

LEVEL = 1 / 255


def severity(lq: Bytes, gt: Bytes) -> Tensor:
    """What restoring must change, SEVERITIES numbers that are mostly within −2…2.

    The mean change of red, green and blue, in tenths of the range; how much more it is above than below, likewise; the
    logarithms of the growth of contrast (ratio of standard deviations) and of the root mean square of the change in
    levels, halved.

    Args:
        lq: H×W×3.
        gt: H×W×3.
    """
    change = (gt.astype(np.float32) - lq) / 255
    colour = change.mean(axis=(0, 1))
    half = len(change) // 2
    slope = change[:half].mean() - change[half:].mean()
    contrast = np.log((gt.std() / 255 + LEVEL) / (lq.std() / 255 + LEVEL))
    amount = np.log(np.sqrt(np.square(change).mean()) / LEVEL + 1)
    return torch.tensor([*(10 * colour), 10 * slope, contrast, amount / 2], dtype=torch.float32)
