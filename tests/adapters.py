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
    damage = Damage.of(embedder.network.prototypes, embedder.labels.index(label))
    bias = torch.full((12,), 0.1)
    adapter = Adapter(damage=damage, whole={"head.bias": bias}, codes={}, signs={}, scales={})
    save_adapters(out, {label: adapter}, release="small-2")
    return load_bundle(out)
