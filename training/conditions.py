"""The frozen embedder's view of a pool: f_I, f_D and f_T of every degraded picture, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.cache import fingerprint
from training.pool import Pool
from training.views import to_tensor
from vlmir.config import Preset
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.preprocess import content_view

__all__ = ["PoolConditions", "embed_pool", "no_conditions"]

BATCH = 64


@dataclass
class PoolConditions:
    """Conditions of the N entries of a pool, each N×D, and the prototypes, K×D."""

    f_I: Tensor
    f_D: Tensor
    f_T: Tensor
    prototypes: Tensor
    """Mean f_D of each label's entries."""


def no_conditions(pool: Pool, preset: Preset) -> PoolConditions:
    """Zeros, for training that withholds every condition."""
    D = preset.embedder.clip.embed_dim
    nothing = torch.zeros(1, D).expand(len(pool), D)
    return PoolConditions(nothing, nothing, nothing, torch.zeros(len(preset.labels), D))


def embed_pool(
    pool: Pool, captioner: BlipCaptioner, embedder: ClipEmbedder, folder: Path
) -> PoolConditions:
    """Caption and embed every degraded picture of the pool once.

    Later runs with the same pictures and networks read the result from ``folder``.
    """
    networks = (captioner.model, captioner.config.beams, embedder.network, embedder.labels)
    file = folder / f"pool-{fingerprint(pool.digest, len(pool), networks)}.safetensors"
    if file.is_file():
        return PoolConditions(**load_file(file))
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(pool), BATCH):
        pictures = [to_tensor(pool.lq(i)) for i in range(start, min(start + BATCH, len(pool)))]
        size = captioner.config.image_size
        captions = captioner.caption_batch(torch.cat([content_view(p, size) for p in pictures]))
        views = torch.cat([embedder.views(p[0].permute(1, 2, 0).numpy()) for p in pictures])
        f_I, f_D, _ = embedder.embed_views(views)
        rows.append((f_I, f_D, embedder.embed_captions(captions)))
        if start % (BATCH * 20) == 0:
            print(f"embedding the pool {start}/{len(pool)}  {captions[0]!r}", flush=True)
    f_I, f_D, f_T = (torch.cat(parts).clone() for parts in zip(*rows, strict=True))
    numbers = torch.tensor([embedder.labels.index(entry.label) for entry in pool.entries])
    prototypes = torch.stack([f_D[numbers == k].mean(0) for k in range(len(embedder.labels))])
    tensors = {"f_I": f_I, "f_D": f_D, "f_T": f_T, "prototypes": prototypes}
    save_file(tensors, file)
    return PoolConditions(**tensors)
