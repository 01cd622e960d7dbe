"""Pictures for the tests of the diffusion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def pictures() -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """A function from a seed to x₀, μ and standard normal noise, each 3×3×5×4."""

    def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        x0, mu = torch.rand(2, 3, 3, 5, 4, generator=g)
        return x0, mu, torch.randn(mu.shape, generator=g)

    return make
