"""Reading DA-CLIP's public checkpoints: their parameter names, rewritten to ours.

DA-CLIP (Luo et al. 2023, arXiv 2310.01018; weights MIT, ``weblzw/daclip-uir-ViT-B-32-irsde``). The U-Net has no
semantic cross-attention; switch ``semantic`` off to load it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlmir.errors import BundleError

__all__ = ["clip_name", "load_strictly", "read_state_dict", "rename", "unet_name"]

_UNET_RULES = (
    (r"^prompt$", "degradation.prompt"),
    (r"^init_conv\.", "stem."),
    (r"^time_mlp\.1\.", "time.mlp.0."),
    (r"^time_mlp\.3\.", "time.mlp.2."),
    (r"^(text_mlp|prompt_mlp)\.", r"degradation.\1."),
    (r"^mid_block([12])\.", r"middle\1."),
    (r"^mid_attn\.", "middle_attention."),
    (r"^final_res_block\.", "final."),
    (r"^final_conv\.", "head."),
    (r"^(downs|ups)\.(\d)\.0\.", r"\1.\2.block1."),
    (r"^(downs|ups)\.(\d)\.1\.", r"\1.\2.block2."),
    (r"^(downs|ups)\.(\d)\.2\.", r"\1.\2.attention."),
    (r"^(downs|ups)\.(\d)\.3\.", r"\1.\2.leave."),
    (r"\.mlp\.1\.(weight|bias)$", r".film.\1"),
    (r"\.block([12])\.proj\.", r".conv\1."),
    (r"\.res_conv\.", ".skip."),
    (r"\.fn\.fn\.transformer_blocks\.0\.", "."),
    (r"\.attn1\.to_out\.0\.", ".self_attention.to_out."),
    (r"\.attn2\.to_out\.0\.", ".ica.to_out."),
    (r"\.attn1\.", ".self_attention."),
    (r"\.attn2\.", ".ica."),
    (r"\.norm1\.", ".self_norm."),
    (r"\.norm2\.", ".ica_norm."),
    (r"\.norm3\.", ".ff_norm."),
    (r"\.ff\.net\.0\.", ".ff.0."),
    (r"\.ff\.net\.2\.", ".ff.1."),
    (r"\.fn\.fn\.to_out\.0\.", ".to_out."),
    (r"\.fn\.fn\.to_out\.1\.g$", ".out_norm.g"),
    (r"\.fn\.fn\.", "."),
)

_CLIP_RULES = (
    (r"^logit_scale$", "degradation_scale"),
    (r"^visual\.", "clip.visual."),
    (r"^visual_control\.transformer\.transformer\.", "controller.tower.transformer."),
    (r"^visual_control\.transformer\.zero_modules\.", "controller.zero."),
    (r"^visual_control\.", "controller.tower."),
)


def unet_name(name: str, *, transformers: frozenset[str]) -> str:
    """Our name of a parameter of DA-CLIP's ``ConditionalUNet``.

    Args:
        name: DA-CLIP's name.
        transformers: Our names of the attention modules that are spatial transformers: the norm before them is named
            differently from the one before linear attention.
    """
    for pattern, replacement in _UNET_RULES:
        name = re.sub(pattern, replacement, name)
    owner, found, _ = name.partition(".fn.norm.g")
    if found:
        return owner + (".pre_norm.g" if owner in transformers else ".norm.g")
    return name


def clip_name(name: str) -> str:
    """Our name of a parameter of DA-CLIP's ``DaCLIP`` (it lists the frozen visual tower twice; both map to one)."""
    for pattern, replacement in _CLIP_RULES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pt``/``.pth`` file; nothing in it is executed.

    Raises:
        BundleError: The file is missing, corrupt, holds something else than tensors, or would need unpickling.
    """
    try:
        _check_sums(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist.") from error
    except Exception as error:  # torch raises many kinds, by what is wrong with the file
        raise BundleError(
            f"{path} is damaged or no plain file of weights; nothing was loaded."
        ) from error
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping) or not all(isinstance(v, Tensor) for v in data.values()):
        raise BundleError(f"{path} holds no state dict (a mapping of names to tensors).")
    return {str(name).removeprefix("module."): tensor for name, tensor in data.items()}


def _check_sums(path: Path) -> None:
    """Compare a zip archive with its checksums, which ``torch.load`` does not.

    Raises:
        ValueError: An entry has changed.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum.")


def rename(state: Mapping[str, Tensor], kind: str, module: nn.Module) -> dict[str, Tensor]:
    """A DA-CLIP state dict under our names.

    Args:
        state: DA-CLIP's names and tensors.
        kind: ``unet`` or ``clip``.
        module: The module that will load it.
    """
    if kind == "clip":
        return {clip_name(name): tensor for name, tensor in state.items()}
    transformers = frozenset(
        name.removesuffix(".proj_in")
        for name, _ in module.named_modules()
        if name.endswith(".proj_in")
    )
    return {unet_name(n, transformers=transformers): tensor for n, tensor in state.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, may_miss: str = "$^") -> None:
    """Load ``state`` into ``module``; every tensor must fit.

    Args:
        module: Where to.
        state: Names and tensors.
        may_miss: Pattern of parameter names that may be absent from ``state`` and keep their values.

    Raises:
        BundleError: Names or shapes differ; the message names the first few.
    """
    own = module.state_dict()
    missing = [n for n in own if n not in state and not re.search(may_miss, n)]
    unknown = [n for n in state if n not in own]
    shapes = [n for n in state if n in own and state[n].shape != own[n].shape]
    if missing or unknown or shapes:
        raise BundleError(
            f"The weights do not fit the network: missing {missing[:3]}, unknown {unknown[:3]}, "
            f"wrong shape {shapes[:3]} ({len(missing)}, {len(unknown)}, {len(shapes)} in all)."
        )
    module.load_state_dict(dict(state), strict=False)
