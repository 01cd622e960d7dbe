"""The optimizer must do the same whatever the memory layout (PyTorch's fused CPU kernel does not)."""

from __future__ import annotations

import torch

from training.config import LoopConfig
from training.engine.loop import adamw


def test_a_channels_last_weight_is_updated_against_its_gradient() -> None:
    torch.manual_seed(0)
    start = torch.randn(8, 4, 3, 3)
    gradient = torch.randn(8, 4, 3, 3)
    model = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    model.load_state_dict({"weight": start, "bias": torch.zeros(8)})
    model.weight.grad = gradient
    adamw(model, LoopConfig(steps=1, batch=1, rate=0.1)).step()
    assert torch.equal((model.weight.detach() - start).sign(), -gradient.sign())
