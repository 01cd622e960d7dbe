"""DA-CLIP's own outputs, from bundles imported from files with its names (weights by formula)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.foreign import SMALL_CLIP, SMALL_UNET, clip_state, daclip_with, unet_state
from tests.golden.unet import assert_reproduces_the_reference
from vlmir.bundle import load_bundle
from vlmir.config import Preset
from vlmir.importer import import_daclip
from vlmir.parts import build_embedder, build_unet


def imported(folder: Path, preset: Preset, names: list[str] | None = None) -> Path:
    torch.save(unet_state(preset), folder / "unet.pth")
    torch.save(clip_state(preset, names), folder / "clip.pt")
    out = folder / "bundle"
    files = {"unet": folder / "unet.pth", "clip": folder / "clip.pt"}
    return import_daclip(out, **files, preset=preset).folder


def test_the_imported_unet_reproduces_the_reference(golden_numbers: Path, tmp_path: Path) -> None:
    preset = daclip_with(clip={**SMALL_CLIP, "embed_dim": 512}, unet={})
    unet = build_unet(load_bundle(imported(tmp_path, preset)))
    assert_reproduces_the_reference(unet, golden_numbers)


def test_the_imported_controller_reproduces_the_reference(
    golden_numbers: Path, tmp_path: Path
) -> None:
    golden = json.loads((golden_numbers / "daclip_controller_tiny.json").read_text())
    # CLIP's whole vocabulary, so that the labels can be embedded; pictures do not pass through it.
    text = golden["config"]["text_cfg"] | {"vocab_size": 49408}
    preset = daclip_with(clip=golden["config"] | {"text_cfg": text}, unet=SMALL_UNET)
    folder = imported(tmp_path, preset, golden["state_dict_keys"])
    network = build_embedder(load_bundle(folder)).network
    pixels = torch.cos(0.013 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)).float()
    with torch.inference_mode():
        f_I, f_D = network.encode_image(pixels.view(2, 3, 64, 64))
    assert torch.allclose(f_I, torch.tensor(golden["image_features"]), rtol=1e-4, atol=1e-5)
    assert torch.allclose(f_D, torch.tensor(golden["degradation_features"]), rtol=1e-4, atol=1e-5)
