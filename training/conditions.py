"""The frozen embedder's view of a pool: f_I, f_D and f_T of every degraded picture, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.cache import fingerprint
from training.captions import CaptionCache
from training.pool import Pool
from training.views import to_tensor
from vlmir.config import Preset
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.embedder import ClipEmbedder

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
    file = folder / f"conditions-{fingerprint(pool.digest, len(pool), networks)}.safetensors"
    if file.is_file():
        return PoolConditions(**load_file(file))
    readers = [partial(pool.lq, i) for i in range(len(pool))]
    captions = CaptionCache(folder, captioner)(readers, "the pool")
    rows: list[tuple[Tensor, Tensor]] = []
    for start in track(range(0, len(pool), BATCH), "embedding the pool"):
        pictures = [to_tensor(read()) for read in readers[start : start + BATCH]]
        views = torch.cat([embedder.views(p[0].permute(1, 2, 0).numpy()) for p in pictures])
        f_I, f_D, _ = embedder.embed_views(views)
        rows.append((f_I, f_D))
    f_I, f_D = (torch.cat(parts).clone() for parts in zip(*rows, strict=True))
    starts = range(0, len(captions), BATCH)
    f_T = torch.cat([embedder.embed_captions(captions[s : s + BATCH]) for s in starts]).clone()
    numbers = torch.tensor([embedder.labels.index(entry.label) for entry in pool.entries])
    prototypes = torch.stack([f_D[numbers == k].mean(0) for k in range(len(embedder.labels))])
    tensors = {"f_I": f_I, "f_D": f_D, "f_T": f_T, "prototypes": prototypes}
    save_file(tensors, file)
    return PoolConditions(**tensors)
