"""Pretrain ``tiny``'s CLIP and BLIP on captioned photos: ``python -m training.pretrain --data captioned/``.

``base`` starts from public CLIP and BLIP weights instead and needs no pretraining. The folder holds ``captions.json``
(file name → list of captions), ``split.json`` (``train``, ``val``, ``test`` → file names) and ``images/``. With
``--init BUNDLE`` both start from that bundle's weights and words.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.cache import fingerprint
from training.command import Stage, add_common, run_stage
from training.data.captioned import CaptionedPhotos, captions_and_split
from training.data.folders import find_data
from training.engine.loop import Run, Task, fit, seed_of
from training.pretrained import load_pretrained
from vlmir.config import Preset
from vlmir.errors import OptionError
from vlmir.vlm.captioner import build_blip
from vlmir.vlm.clip import build_clip
from vlmir.vlm.preprocess import content_view, normalize
from vlmir.vlm.tokenizer import PAD_ID, CaptionTokenizer

__all__ = ["BlipTask", "CaptionBatch", "ClipTask", "contrastive_loss", "main", "work"]


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
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@dataclass
class CaptionBatch:
    """B photos, B×3×S×S (0…1), and the ids of a caption of each, B×L."""

    images: Tensor
    ids: Tensor


class _CaptionTask(Task):
    """What both have in common: photos with one of their captions."""

    def __init__(
        self, model: Any, data: CaptionedPhotos, ids: Tensor, *, size: int, batch: int, run: Run
    ) -> None:
        super().__init__()
        self._network = model.requires_grad_(True).to(run.compute.device)
        self._data, self._ids, self._size = data, ids, size
        self.data = fingerprint(data.names, ids.numpy())
        self._batch, self._run = batch, run

    @property
    def model(self) -> nn.Module:
        """CLIP or BLIP."""
        network: nn.Module = self._network
        return network

    def draw(self, step: int) -> CaptionBatch:
        """This worker's photos of a step, cropped and mirrored."""
        generator = torch.Generator().manual_seed(seed_of(self._run.seed, step))
        train = self._data.train
        indices = train[torch.randint(len(train), (self._batch,), generator=generator)]
        images = augment(self._data.batch(indices), generator)
        ids = self._ids[self._data.pick_caption(indices, generator)]
        places = list(self._run.workers.share(self._batch))
        views = normalize(content_view(images[places], self._size))
        return CaptionBatch(views, ids[places])


class ClipTask(_CaptionTask):
    """CLIP, contrastively (Radford et al. 2021)."""

    name = "clip"

    def forward(self, batch: CaptionBatch) -> dict[str, Tensor]:
        """The symmetric cross-entropy over the whole batch's similarities."""
        clip, gathered = self._network, self._run.workers.gathered
        # On CPUs twice as fast as flash attention for 50 tokens.
        with sdpa_kernel(SDPBackend.MATH), self._run.compute.autocast():
            images, texts = clip.encode_image(batch.images), clip.encode_text(batch.ids)
        scale = clip.logit_scale.exp().clamp(max=100)
        return {"loss": contrastive_loss(gathered(images.float()), gathered(texts.float()), scale)}


class BlipTask(_CaptionTask):
    """BLIP's captioning loss (Li et al. 2022)."""

    name = "blip"

    def forward(self, batch: CaptionBatch) -> dict[str, Tensor]:
        """The cross-entropy of the next word."""
        ids = batch.ids[:, : int((batch.ids != PAD_ID).sum(1).max())]
        labels = ids.masked_fill(ids == PAD_ID, -100)
        with sdpa_kernel(SDPBackend.MATH), self._run.compute.autocast():
            result = self._network(
                pixel_values=batch.images,
                input_ids=ids,
                attention_mask=ids != PAD_ID,
                labels=labels,
            )
        return {"loss": result.loss}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.pretrain",
        description="Train tiny's CLIP and BLIP on captioned photos.",
    )
    add_common(parser, out=Path("runs/pretrain"))
    parser.add_argument("--init", type=Path, help="bundle whose CLIP and BLIP are trained further")
    run_stage(parser.parse_args(), "pretrain")


def work(arguments: argparse.Namespace, stage: Stage) -> None:
    """Train both as the command line says."""
    from open_clip.transformer import PatchDropout

    preset, config, run = stage.preset, stage.config.pretrain, stage.run
    if config is None:
        raise OptionError(
            f"{preset.name} starts from public weights; there is nothing to pretrain."
        )
    folder = find_data(arguments.data).one_captioned()
    run.tracker.tag("data.digest", fingerprint(captions_and_split(folder)))
    run.tracker.built_on()
    data = CaptionedPhotos(folder)
    words = run.out / "tokenizer.json"
    with run.workers.first_alone():
        clip, blip = _begin(preset, data, arguments.init, words)
    tokenizer = CaptionTokenizer(words)
    sizes = preset.embedder.clip
    ids = tokenizer(data.flat_captions, sizes.text_cfg.context_length)
    image = sizes.vision_cfg.image_size
    clip = clip or build_clip(sizes)
    clip.visual.patch_dropout = PatchDropout(config.patch_dropout)
    clip_task = ClipTask(clip, data, ids, size=image, batch=config.clip.batch, run=run)
    fit(clip_task, config.clip, run)
    words_of = preset.captioner
    ids = tokenizer(data.flat_captions, words_of.max_tokens)
    blip = blip or build_blip(words_of, tokenizer.vocab_size)
    image = words_of.image_size
    fit(BlipTask(blip, data, ids, size=image, batch=config.blip.batch, run=run), config.blip, run)


def _begin(
    preset: Preset, data: CaptionedPhotos, init: Path | None, words: Path
) -> tuple[Any | None, Any | None]:
    """Lay out the tokenizer; CLIP and BLIP of the bundle to go on from, or None."""
    if init is not None:
        start = load_pretrained(preset, init)
        captioner = start.need_captioner()
        assert start.words is not None
        words.parent.mkdir(parents=True, exist_ok=True)
        words.write_text(start.words.text, encoding="utf-8")
        return start.clip, captioner.model
    if not words.is_file():
        vocabulary = preset.embedder.clip.text_cfg.vocab_size
        CaptionTokenizer.train([*data.train_captions, *preset.labels], vocabulary, words)
    return None, None


if __name__ == "__main__":
    main()
