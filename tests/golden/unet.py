"""The reference's forward pass of the U-Net at its full size, by numbers computed with the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlmir.nn import UNet

__all__ = ["assert_reproduces_the_reference"]


def assert_reproduces_the_reference(unet: UNet, golden_numbers: Path) -> None:
    """The network with weights by formula gives the reference's output for the reference's input, to 1e-4."""
    golden = json.loads((golden_numbers / "daclip_unet_forward.json").read_text())
    count = 3 * 40 * 56
    x_t = torch.linspace(-1, 1, count).view(1, 3, 40, 56)
    mu = torch.linspace(0, 1, count).view(1, 3, 40, 56).flip(-1)
    f_D = torch.linspace(-1, 1, 512)[None]
    f_I = torch.cos(0.1 * torch.arange(512))[None]
    with torch.inference_mode():
        output = unet(x_t, mu, torch.tensor([37]), unet.prepare(None, f_I, f_D, 1))
    assert list(output.shape) == golden["shape"]
    assert output.mean().item() == pytest.approx(golden["mean"], rel=1e-4)
    assert output.std().item() == pytest.approx(golden["std"], rel=1e-4)
    assert output.flatten()[:8].tolist() == pytest.approx(golden["first8"], rel=1e-4)
