"""The degradation controller against DA-CLIP's own outputs (weights by formula)."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path

import pytest
import torch

from vlmir.config import ClipConfig, EmbedderConfig, LoraConfig, from_dict
from vlmir.daclip import clip_name, load_strictly, rename
from vlmir.vlm.clip import DegradationCLIP


def test_controller_reproduces_the_reference(golden_numbers: Path) -> None:
    golden = json.loads((golden_numbers / "daclip_controller_tiny.json").read_text())
    config = EmbedderConfig(
        clip=from_dict(ClipConfig, golden["config"]),
        lora=LoraConfig(rank=4, alpha=8.0, target_modules=("c_fc", "c_proj")),
        resize="crop",
        detail=False,
    )
    network = DegradationCLIP(config, 11).eval()
    own, state = network.state_dict(), {}
    for n, name in enumerate(golden["state_dict_keys"]):
        like = own[clip_name(name)]
        i = torch.arange(like.numel(), dtype=torch.float64)
        fan = like.numel() / like.shape[0] if like.ndim else 1
        state[name] = (torch.sin(0.37 * i + n) * fan**-0.5).float().view(like.shape)
    ours = r"^(caption_encoder\.|label_embeddings|prototypes|logit_scale)"
    load_strictly(network, rename(state, "clip", network), may_miss=ours)
    pixels = torch.cos(0.013 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)).float()
    with torch.inference_mode():
        f_I, f_D = network.encode_image(pixels.view(2, 3, 64, 64))
    assert f_I.flatten().tolist() == pytest.approx(
        functools.reduce(operator.iadd, golden["image_features"], []), abs=1e-4
    )
    assert f_D.flatten().tolist() == pytest.approx(
        functools.reduce(operator.iadd, golden["degradation_features"], []), abs=1e-4
    )
