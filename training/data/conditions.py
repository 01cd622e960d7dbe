"""The frozen embedder's view of a pool: f_I, f_D and f_T of every degraded picture, computed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.cache import fingerprint
from training.data.caption_cache import CaptionCache
from training.data.pool import Bytes, Pool, to_tensor
from vlmir.config import Preset
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.embedder import ClipEmbedder

__all__ = ["PoolConditions", "embed_pool", "no_conditions"]

BATCH = 64
CPU = torch.device("cpu")


@dataclass
class PoolConditions:
    """Conditions of the N entries of a pool, each N×D, and the prototypes, K×D."""

    f_I: Tensor
    f_D: Tensor
    f_T: Tensor
    prototypes: Tensor
    """Mean f_D of each label's entries; the embedder's own where a label has none."""


def no_conditions(pool: Pool, preset: Preset) -> PoolConditions:
    """Zeros, for training that withholds every condition."""
    D = preset.embedder.clip.embed_dim
    nothing = torch.zeros(1, D).expand(len(pool), D)
    return PoolConditions(nothing, nothing, nothing, torch.zeros(len(preset.labels), D))


def embed_pool(
    pool: Pool,
    captioner: BlipCaptioner | None,
    embedder: ClipEmbedder,
    folder: Path,
    device: torch.device = CPU,
) -> PoolConditions:
    """Caption and embed every degraded picture of the pool once.

    Later runs with the same pictures and networks read the result from ``folder``.

    Args:
        pool: N degraded pictures.
        captioner: None for a network that does not read captions: f_T is zeros.
        embedder: Gives f_I, f_D and f_T. A label without pictures in the pool keeps its prototype.
        folder: Where the result is kept.
        device: Where both networks are moved, and stay.

    Returns:
        The conditions, on the CPU.
    """
    words = (captioner.model, captioner.config.beams) if captioner is not None else ()
    networks = (*words, embedder.network, embedder.labels)
    file = folder / f"conditions-{fingerprint(pool.digest, len(pool), networks)}.safetensors"
    if file.is_file():
        return PoolConditions(**load_file(file))
    readers = [partial(pool.lq, i) for i in range(len(pool))]
    embedder.network.to(device)
    captions = None
    if captioner is not None:
        captioner.model.to(device)
        captions = CaptionCache(folder, captioner)(readers, "the pool")
    f_I, f_D = _embed_pictures(readers, embedder, device)
    f_T = torch.zeros_like(f_D) if captions is None else _embed_captions(captions, embedder, device)
    tensors = {"f_I": f_I, "f_D": f_D, "f_T": f_T, "prototypes": _prototypes(pool, f_D, embedder)}
    part = file.with_suffix(".part")
    save_file(tensors, part)
    os.replace(part, file)
    return PoolConditions(**tensors)


def _embed_pictures(
    readers: Sequence[Callable[[], Bytes]], embedder: ClipEmbedder, device: torch.device
) -> tuple[Tensor, Tensor]:
    """f_I and f_D of every picture, each N×D on the CPU."""
    rows: list[tuple[Tensor, Tensor]] = []
    for start in track(range(0, len(readers), BATCH), "embedding the pool"):
        pictures = [to_tensor(read()) for read in readers[start : start + BATCH]]
        views = torch.cat([embedder.view(p[0].permute(1, 2, 0).numpy()) for p in pictures])
        f_I, f_D, _ = embedder.see(views.to(device))
        rows.append((f_I.cpu(), f_D.cpu()))
    f_I, f_D = (torch.cat(parts).clone() for parts in zip(*rows, strict=True))
    return f_I, f_D


@torch.no_grad()
def _embed_captions(
    captions: Sequence[str], embedder: ClipEmbedder, device: torch.device
) -> Tensor:
    """f_T of every caption, N×D on the CPU."""
    parts = (captions[start : start + BATCH] for start in range(0, len(captions), BATCH))
    ids = (embedder.tokenize(part).to(device) for part in parts)
    return torch.cat([embedder.network.encode_caption(part).cpu() for part in ids])


def _prototypes(pool: Pool, f_D: Tensor, embedder: ClipEmbedder) -> Tensor:
    """Mean f_D of each label's entries, K×D; pictures of labels that the embedder does not know belong to none."""
    prototypes = embedder.network.prototypes.detach().cpu().clone()
    for number, label in enumerate(embedder.labels):
        own = torch.tensor([entry.label == label for entry in pool.entries])
        if own.any():
            prototypes[number] = f_D[own].mean(0)
    return prototypes
