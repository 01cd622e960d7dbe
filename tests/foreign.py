"""Files as DA-CLIP publishes them, by name and shape, with weights by formula; whole or made small."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmir.config import Preset, from_dict, load_preset
from vlmir.daclip import clip_name, rename
from vlmir.nn import UNet
from vlmir.vlm.clip import DegradationCLIP

__all__ = [
    "SMALL_CLIP",
    "SMALL_UNET",
    "by_formula",
    "clip_state",
    "daclip_files",
    "daclip_with",
    "public_shapes",
    "small_daclip",
    "unet_state",
]

DATA = Path(__file__).parent / "golden" / "data"

SMALL_CLIP: Mapping[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    # All words of CLIP's: the labels are really tokenised.
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SMALL_UNET: Mapping[str, Any] = {"width": 32, "multipliers": [1, 1, 1, 1]}


def daclip_with(*, clip: Mapping[str, Any], unet: Mapping[str, Any]) -> Preset:
    """The preset ``daclip`` with another CLIP, and these values in its U-Net."""
    data = load_preset("daclip").to_dict()
    data["embedder"]["clip"] = dict(clip)
    data["sampler"]["unet"] |= {**unet, "context_dim": clip["embed_dim"]}
    return from_dict(Preset, data)


def small_daclip() -> Preset:
    """DA-CLIP's architecture, as small as it can be."""
    return daclip_with(clip=SMALL_CLIP, unet=SMALL_UNET)


def public_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public file, ``unet`` or ``clip``, in its order."""
    lines = (DATA / f"daclip_{kind}_state_dict_shapes.txt").read_text().splitlines()
    return {name: ast.literal_eval(size) for name, size in (line.split(" ", 1) for line in lines)}


def by_formula(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensor n, in this order: sin(0.37 i + n) / sqrt(fan_in)."""
    state = {}
    for n, (name, size) in enumerate(shapes.items()):
        count = math.prod(size)
        fan = count / size[0] if size else 1
        i = torch.arange(count, dtype=torch.float64)
        state[name] = (torch.sin(0.37 * i + n) * fan**-0.5).float().view(size)
    return state


def unet_state(preset: Preset) -> dict[str, Tensor]:
    """What ``universal-ir.pth`` would hold in this architecture."""
    network = UNet(preset.sampler.unet)
    return by_formula(_shapes_of(network, {n: _ours(n, network) for n in public_shapes("unet")}))


def clip_state(preset: Preset, names: list[str] | None = None) -> dict[str, Tensor]:
    """What ``daclip_ViT-B-32.pt`` would hold in this architecture.

    Args:
        preset: The architecture.
        names: Its tensors in their order; None: those of the public file, without the blocks that are not there.
    """
    network = DegradationCLIP(preset.embedder, len(preset.labels), lora=False)
    ours = {name: clip_name(name) for name in names or public_shapes("clip")}
    state = by_formula(_shapes_of(network, ours))
    # One tower under two names; the reference filled it once for each, so the last stands.
    return state | {f"clip.{n}": tensor for n, tensor in state.items() if n.startswith("visual.")}


def daclip_files(folder: Path, preset: Preset) -> tuple[Path, Path]:
    """Write both files, the second with what training leaves around its weights."""
    unet, clip = folder / "universal-ir.pth", folder / "daclip_ViT-B-32.pt"
    torch.save(unet_state(preset), unet)
    torch.save({"epoch": 30, "name": "daclip", "state_dict": clip_state(preset)}, clip)
    return unet, clip


def _ours(name: str, network: UNet) -> str:
    (ours,) = rename({name: torch.empty(0)}, "unet", network)
    return ours


def _shapes_of(network: nn.Module, ours: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    own = network.state_dict()
    return {name: tuple(own[our].shape) for name, our in ours.items() if our in own}
