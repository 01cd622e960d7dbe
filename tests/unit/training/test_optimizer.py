"""The optimizer must do the same whatever the memory layout (PyTorch's fused CPU kernel does not)."""

from __future__ import annotations

import torch

from training.loop import adamw


def test_a_channels_last_weight_is_updated_against_its_gradient() -> None:
    torch.manual_seed(0)
    start = torch.randn(8, 4, 3, 3)
    gradient = torch.randn(8, 4, 3, 3)
    weight = torch.nn.Parameter(start.contiguous(memory_format=torch.channels_last))
    weight.grad = gradient
    adamw([weight], rate=0.1).step()
    assert torch.equal((weight.detach() - start).sign(), -gradient.sign())
