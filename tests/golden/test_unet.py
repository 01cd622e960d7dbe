"""The U-Net against DA-CLIP's own outputs (weights by formula; see the recipe in the golden file)."""

from __future__ import annotations

import ast
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tests.golden.unet import assert_reproduces_the_reference
from vlmir.config import load_preset
from vlmir.daclip import load_strictly, rename
from vlmir.errors import BundleError
from vlmir.nn import UNet


def formula_weights(shapes: Path) -> dict[str, torch.Tensor]:
    """Parameter n, in the order of the file: sin(0.37 i + n) / sqrt(fan_in)."""
    state = {}
    for n, line in enumerate(shapes.read_text().splitlines()):
        name, shape = line.split(" ", 1)
        size = ast.literal_eval(shape)
        count = math.prod(size)
        i = torch.arange(count, dtype=torch.float64)
        values = torch.sin(0.37 * i + n) * (count / size[0]) ** -0.5
        state[name] = values.float().view(size)
    return state


@pytest.fixture(scope="module")
def unet(golden_numbers: Path) -> UNet:
    config = dataclasses.replace(load_preset("base").sampler.unet, semantic=False)
    unet = UNet(config).eval()
    state = formula_weights(golden_numbers / "daclip_unet_state_dict_shapes.txt")
    load_strictly(unet, rename(state, "unet", unet), may_miss=r"^null\.")
    return unet


def test_base_reproduces_the_reference(unet: UNet, golden_numbers: Path) -> None:
    assert_reproduces_the_reference(unet, golden_numbers)


def test_base_has_the_references_parameters(unet: UNet, golden_numbers: Path) -> None:
    own = sum(p.numel() for name, p in unet.named_parameters() if not name.startswith("null."))
    assert own == 48_975_747


def test_a_missing_tensor_is_refused(unet: UNet, golden_numbers: Path) -> None:
    state = formula_weights(golden_numbers / "daclip_unet_state_dict_shapes.txt")
    del state["final_conv.bias"]
    with pytest.raises(BundleError, match=r"head\.bias"):
        load_strictly(unet, rename(state, "unet", unet), may_miss=r"^null\.")
