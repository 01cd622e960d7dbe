"""Pretrain ``tiny``'s CLIP and BLIP on captioned photos: ``python -m training.pretrain --data FOLDER``.

``base`` starts from public CLIP and BLIP weights instead and needs no pretraining. The folder holds ``captions.json``
(file name → list of captions), ``split.json`` (``train``, ``val``, ``test`` → file names) and ``images/``. With
``--init BUNDLE`` both start from that bundle's weights and words; a part with no steps is kept as it is.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.captioned import CaptionedPhotos
from training.loop import Log, adamw, cosine_rate, mixed_precision, resume, save_progress
from training.views import load_pretrained
from vlmir.config import Preset, load_preset
from vlmir.vlm.captioner import build_blip
from vlmir.vlm.clip import build_clip
from vlmir.vlm.preprocess import content_view, normalize
from vlmir.vlm.tokenizer import PAD_ID, CaptionTokenizer

__all__ = ["main", "train_blip", "train_clip"]

BATCH = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
PATCH_DROPOUT = 0.5
"""Half of the patches are hidden while CLIP trains: twice as fast, and less over-fitting (FLIP, Li et al. 2023)."""


def augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror and crop of a batch (one crop window for the batch: contrastive pairs do not mind)."""
    side = images_BCHW.shape[-1]
    size = int(torch.randint(int(side * 0.75), side + 1, (), generator=generator))
    top, left = torch.randint(0, side - size + 1, (2,), generator=generator).tolist()
    crop = images_BCHW[..., top : top + size, left : left + size]
    flip = torch.rand(len(crop), generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), crop.flip(-1), crop)


def contrastive_loss(images_BD: Tensor, texts_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch's B×B cosine similarities (CLIP; paper, eq. 1)."""
    logits = scale * F.normalize(images_BD, dim=-1) @ F.normalize(texts_BD, dim=-1).T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(
    preset: Preset,
    data: CaptionedPhotos,
    tokenizer: CaptionTokenizer,
    out: Path,
    *,
    steps: int,
    clip: Any | None = None,
) -> None:
    """Train CLIP contrastively, from random weights or those of ``clip``, into ``out/clip.pt``; resumes from it."""
    config = preset.embedder.clip
    clip = (clip or build_clip(config)).requires_grad_(True)
    from open_clip.transformer import PatchDropout

    clip.visual.patch_dropout = PatchDropout(PATCH_DROPOUT)
    ids = tokenizer(data.flat_captions, config.text_cfg.context_length)

    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        images = augment(data.batch(indices), generator)
        views = normalize(content_view(images, config.vision_cfg.image_size))
        texts = ids[data.pick_caption(indices, generator)]
        image_features, text_features = clip.encode_image(views), clip.encode_text(texts)
        scale = clip.logit_scale.exp().clamp(max=100)
        return contrastive_loss(image_features.float(), text_features.float(), scale)

    _train("clip", clip, loss, data, out, steps)


def train_blip(
    preset: Preset,
    data: CaptionedPhotos,
    tokenizer: CaptionTokenizer,
    out: Path,
    *,
    steps: int,
    blip: Any | None = None,
) -> None:
    """Train BLIP's captioning loss, from random weights or those of ``blip``, into ``out/blip.pt``; resumes from it."""
    config = preset.captioner
    blip = (blip or build_blip(config, tokenizer.vocab_size)).requires_grad_(True)
    ids = tokenizer(data.flat_captions, config.max_tokens)

    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        images = augment(data.batch(indices), generator)
        views = normalize(content_view(images, config.image_size))
        texts = ids[data.pick_caption(indices, generator)]
        texts = texts[:, : int((texts != PAD_ID).sum(1).max())]
        labels = texts.masked_fill(texts == PAD_ID, -100)
        result = blip(
            pixel_values=views, input_ids=texts, attention_mask=texts != PAD_ID, labels=labels
        )
        value: Tensor = result.loss
        return value

    _train("blip", blip, loss, data, out, steps)


def _train(
    name: str,
    model: Any,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    data: CaptionedPhotos,
    out: Path,
    steps: int,
) -> None:
    """The loop of both models: AdamW, cosine, mixed precision, a checkpoint every 100 steps."""
    file = out / f"{name}.pt"
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decay, "weight_decay": WEIGHT_DECAY},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = adamw(groups, rate=LEARNING_RATE, betas=(0.9, 0.98))
    start, _ = resume(file, model, optimizer)
    log = Log(out, name, steps, start=start)
    model.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, total=steps, warmup=50, peak=LEARNING_RATE)
        indices = data.train[torch.randint(len(data.train), (BATCH,), generator=generator)]
        with sdpa_kernel(SDPBackend.MATH):  # on CPUs, twice as fast as flash for 50 tokens
            with mixed_precision():
                loss = loss_of(indices, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            log(step + 1, loss=loss.item())
        if (step + 1) % 100 == 0 and step + 1 < steps:
            save_progress(file, step + 1, model, optimizer)
    save_progress(file, max(start, steps), model, optimizer)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder of captioned photos")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/pretrain"), help="where checkpoints go"
    )
    parser.add_argument("--init", type=Path, help="bundle whose CLIP and BLIP are trained further")
    parser.add_argument("--clip-steps", type=int, default=500)
    parser.add_argument("--blip-steps", type=int, default=500)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    preset = load_preset("tiny")
    data = CaptionedPhotos(arguments.data)
    words = arguments.out / "tokenizer.json"
    clip = blip = None
    if arguments.init is not None:
        start = load_pretrained(preset, arguments.init)
        clip, blip = start.clip, start.captioner.model
        words.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(start.words, words)
    elif not words.is_file():
        vocabulary = preset.embedder.clip.text_cfg.vocab_size
        CaptionTokenizer.train([*data.train_captions, *preset.labels], vocabulary, words)
    tokenizer = CaptionTokenizer(words)
    train_clip(preset, data, tokenizer, arguments.out, steps=arguments.clip_steps, clip=clip)
    train_blip(preset, data, tokenizer, arguments.out, steps=arguments.blip_steps, blip=blip)


if __name__ == "__main__":
    main()
