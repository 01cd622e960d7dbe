"""What stage 1 does for captions: how near f_T of a damaged photo's caption lies to that of the true one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from training.data.captioned import CaptionedPhotos
from training.data.pool import degrade_bytes
from training.measure.intervals import summary
from vlmir.bundle import load_bundle
from vlmir.parts import build_captioner, build_embedder
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.preprocess import content_view

__all__ = ["measure_alignment"]

BATCH = 100


@torch.inference_mode()
def measure_alignment(bundle: str, captioned: Path, limit: int | None) -> dict[str, Any]:
    """cos(f_LQ^T, f_GT^T) before and after stage 1, on the test photos with synthetic damage.

    f_GT^T is the frozen text encoder's embedding of a human caption of the clean photo. f_LQ^T is that of BLIP's
    caption of the damaged photo, before stage 1 by the frozen encoder, after it by the LoRA caption encoder.

    Args:
        bundle: Name or folder of the weights.
        captioned: Folder of captioned photos.
        limit: Only so many test photos; None: all.

    Returns:
        What :func:`training.measure.intervals.summary` gives of four mean cosines, −1…1, each over the photo's own
        captions: ``before`` and ``after``; and, since an encoder that says the same of every photo would score well
        too, ``before_other`` and ``after_other``, the same against the captions of another photo.
    """
    photos, opened = CaptionedPhotos(captioned), load_bundle(bundle)
    embedder = build_embedder(opened)
    chosen = photos.test[:limit]
    captions = _captions_of_damaged(photos, chosen, build_captioner(opened), embedder.labels)
    ids = embedder.tokenize(captions)
    truth = _true_embeddings(photos, chosen, embedder)
    found = {
        "before": F.normalize(embedder.network.encode_text(ids), dim=-1),
        "after": F.normalize(embedder.network.encode_caption(ids), dim=-1),
    }
    own = {name: (f_LQ * truth).sum(-1).tolist() for name, f_LQ in found.items()}
    others = truth.roll(1, dims=0)
    other = {f"{name}_other": (f_LQ * others).sum(-1).tolist() for name, f_LQ in found.items()}
    return summary(own | other)


def _captions_of_damaged(
    photos: CaptionedPhotos, chosen: Tensor, captioner: BlipCaptioner, labels: Sequence[str]
) -> list[str]:
    """BLIP's captions of the chosen photos, each damaged in one of the ways in turn, with stage 1's strengths."""
    damages = [label for label in labels if label != "clean"]
    captions = []
    for part in track(torch.split(chosen, BATCH), "damaged captions"):
        views = []
        for i in part.tolist():
            rng = np.random.default_rng(i)
            label, strength = damages[i % len(damages)], float(rng.uniform(0.2, 1))
            photo = photos.images[i].permute(1, 2, 0).numpy()
            lq = degrade_bytes(photo, label, seed=i, strength=strength)
            pixels = torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 255
            views.append(content_view(pixels, captioner.config.image_size))
        captions += captioner.caption_batch(torch.cat(views))
    return captions


def _true_embeddings(photos: CaptionedPhotos, chosen: Tensor, embedder: ClipEmbedder) -> Tensor:
    """Mean of the normalised embeddings of each photo's human captions, N×D: its product gives the mean cosine."""
    groups = [photos.captions[i] for i in chosen.tolist()]
    return torch.stack(
        [
            F.normalize(embedder.network.encode_text(embedder.tokenize(group)), dim=-1).mean(0)
            for group in groups
        ]
    )
