"""A bundle whose sampler has an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vlmir.bundle import Bundle, load_bundle
from vlmir.nn import Adapter, Damage
from vlmir.parts import build_embedder, save_adapters

__all__ = ["with_adapter"]


def with_adapter(folder: Path, out: Path, *, label: str) -> Bundle:
    """A copy of a bundle whose network for one damage adds 0.1 to all that it predicts."""
    shutil.copytree(folder, out)
    embedder = build_embedder(load_bundle(folder))
    f_D = embedder.embed_label(label)
    others = torch.stack([embedder.embed_label(o) for o in embedder.labels if o != label])
    bias = torch.full((12,), 0.1)
    adapter = Adapter(
        damage=Damage(f_D, others), whole={"head.bias": bias}, codes={}, signs={}, scales={}
    )
    save_adapters(out, {label: adapter}, release="small-2")
    return load_bundle(out)
