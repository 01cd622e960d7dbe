"""What stage 1 reads: views of degraded pictures with their captions, prepared once and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from training.cache import fingerprint, kept
from training.data.caption_cache import CaptionCache
from training.data.captioned import CaptionedPhotos, captions_and_split
from training.data.pool import Bytes, Pool, degrade_bytes, to_tensor
from training.data.severity import severity
from training.pretrained import Pretrained
from vlmir.config import Preset
from vlmir.vlm.preprocess import content_view, detail_view, normalize

__all__ = [
    "DamageData",
    "StageOneData",
    "prepare_damage",
    "prepare_stage1",
]

CPU = torch.device("cpu")

CAPTIONED = 4000
"""Captioned photos in the joint phase, each degraded once."""

PER_LABEL = 200
"""Pictures of each label in the joint phase, cut from the clean photos and real pairs."""

DAMAGE_PER_LABEL = 1700
"""Pictures of each label in the first phase, cut from the clean photos and real pairs."""

DAMAGE_CAPTIONED = 1300
"""Captioned photos with each label in the first phase: small, but of many more scenes."""

TIMES = {"clean": 6, "shadowed": 3, "raindrop": 3, "hazy": 3}
"""Labels that are told apart with difficulty get so many times as many pictures.

Clean ones most: of what looks the same without damage and with little, the photo is not to be altered.
"""

REAL_SHARE = 0.4
"""Share of real pairs among the pictures of a label that has some."""


@dataclass
class Views:
    """N degraded pictures with their labels."""

    views: Tensor
    """N×C×S×S uint8: content view, then detail view."""
    labels: Tensor
    """N label numbers, int64."""

    @property
    def digest(self) -> str:
        """A fingerprint of the labels and of some of the pictures."""
        return fingerprint(self.labels.numpy(), self.views[:: max(1, len(self.views) // 8)].numpy())

    def normalised_views(self) -> Tensor:
        """The views as the network reads them."""
        return normalize(self.views.float() / 255)


@dataclass
class DamageData(Views):
    """What the first phase reads."""

    severity: Tensor
    """N×SEVERITIES, see :func:`training.data.severity.severity`."""

    def draw(self, count: int, generator: torch.Generator) -> DamageData:
        """A random batch, mirrored at random; hard labels have more pictures, so they come more often."""
        index = torch.randint(len(self.labels), (count,), generator=generator)
        views = _mirrored(self.views[index], generator)
        return DamageData(views, self.labels[index], self.severity[index])

    def part(self, places: range) -> DamageData:
        """The pictures at these places of a batch."""
        index = list(places)
        return DamageData(self.views[index], self.labels[index], self.severity[index])


@dataclass
class StageOneData(Views):
    """N degraded pictures; the first ``captioned`` are captioned photos, the others come from the pool."""

    lq_ids: Tensor
    """N×L ids of the captions of the degraded pictures."""
    f_GT: Tensor
    """N×D frozen embeddings of the captions of the clean pictures."""
    captioned: int

    def draw(self, count: int, generator: torch.Generator) -> StageOneData:
        """A random batch, half captioned photos and half pool pictures, mirrored at random."""
        half, total = count // 2, len(self.labels)
        first = torch.randint(self.captioned, (half,), generator=generator)
        second = torch.randint(self.captioned, total, (count - half,), generator=generator)
        index = torch.cat([first, second])
        views = _mirrored(self.views[index], generator)
        return StageOneData(views, self.labels[index], self.lq_ids[index], self.f_GT[index], half)

    def part(self, places: range) -> StageOneData:
        """The pictures at these places of a batch; captioned photos still come first."""
        index = list(places)
        captioned = sum(place < self.captioned for place in places)
        views, labels, lq_ids, f_GT = (
            part[index] for part in (self.views, self.labels, self.lq_ids, self.f_GT)
        )
        return StageOneData(views, labels, lq_ids, f_GT, captioned)


def _mirrored(views: Tensor, generator: torch.Generator) -> Tensor:
    flip = torch.rand(len(views), generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), views.flip(-1), views)


def prepare_damage(
    preset: Preset, pool: Pool, captioned: Path, folder: Path, *, seed: int
) -> DamageData:
    """Degrade and view pictures for the first phase once; later runs with the same inputs read them from ``folder``.

    Another seed gives other pictures: going on with one helps, since the path learns by heart what it has often seen.
    """
    counts = (DAMAGE_PER_LABEL, DAMAGE_CAPTIONED, TIMES, REAL_SHARE, preset.labels)
    made_of = fingerprint(
        pool.digest, len(pool), captions_and_split(captioned), _how_seen(preset), counts, seed
    )
    file = folder / f"damage-{made_of}.pt"
    return DamageData(**kept(file, lambda: _damage(preset, pool, CaptionedPhotos(captioned), seed)))


def prepare_stage1(
    preset: Preset,
    parts: Pretrained,
    pool: Pool,
    captioned: Path,
    folder: Path,
    device: torch.device = CPU,
) -> StageOneData:
    """Degrade, view, caption and embed the pictures of the joint phase once.

    Later runs with the same inputs read them from ``folder``. The pictures are damaged here, so they are not those of
    the pool, and their captions are made here, too.

    Args:
        preset: The architecture.
        parts: CLIP, and the captioner.
        pool: Clean photos, and real pairs.
        captioned: Folder of captioned photos.
        folder: Where the result and the captions are kept.
        device: Where CLIP and the captioner are moved, and stay.

    Returns:
        The pictures' views, captions and embeddings, on the CPU.

    Raises:
        OptionError: There is no captioner.
    """
    captioner = parts.need_captioner()
    for network in (parts.clip, captioner.model):
        network.to(device)
    networks = (parts.clip, captioner.model, preset.captioner.beams, _how_seen(preset))
    counts = (CAPTIONED, PER_LABEL, TIMES, REAL_SHARE, preset.labels)
    made_of = fingerprint(pool.digest, len(pool), captions_and_split(captioned), networks, counts)
    file = folder / f"data-{made_of}.pt"
    captions = CaptionCache(folder, captioner)
    photos = CaptionedPhotos(captioned)
    state = kept(file, lambda: _prepare(preset, parts, pool, photos, captions, device))
    return StageOneData(**state)


def _damage(preset: Preset, pool: Pool, photos: CaptionedPhotos, seed: int) -> dict[str, Any]:
    times = {label: TIMES.get(label, 1) for label in preset.labels}
    count = (DAMAGE_CAPTIONED + DAMAGE_PER_LABEL) * sum(times.values())
    # At once, not joined at the end: that would take twice the memory.
    views = torch.empty(count, *_view_shape(preset), dtype=torch.uint8)
    labels, severities = list[int](), list[Tensor]()
    for number, label in enumerate(preset.labels):
        rng = np.random.default_rng((1 + seed, number))
        small = rng.choice(photos.train.numpy(), DAMAGE_CAPTIONED * times[label])
        degraded = (_damaged_photo(photos, int(i), label, rng) for i in small)
        cut = _pictures(pool, label, DAMAGE_PER_LABEL * times[label], rng)
        for lq, gt in chain(degraded, cut):
            views[len(labels)] = _view(preset, lq)[0]
            labels.append(number)
            severities.append(severity(lq, gt))
        print(
            f"degraded for the first phase: {label}, {len(labels)} of {count} pictures", flush=True
        )
    return {"views": views, "labels": torch.tensor(labels), "severity": torch.stack(severities)}


def _prepare(
    preset: Preset,
    parts: Pretrained,
    pool: Pool,
    photos: CaptionedPhotos,
    captions: CaptionCache,
    device: torch.device,
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    views, lq_small, gt_small, labels, gt_captions = [], list[Bytes](), list[Bytes](), [], []

    def add(lq: Bytes, label: int) -> None:
        views.append(_view(preset, lq))
        lq_small.append(_small(preset, lq))
        labels.append(label)

    chosen = rng.permutation(photos.train.numpy())[:CAPTIONED].tolist()
    for i in chosen:
        label = int(rng.integers(len(preset.labels)))
        add(_damaged_photo(photos, i, preset.labels[label], rng)[0], label)
        gt_captions.append(photos.captions[i][int(rng.integers(len(photos.captions[i])))])
    for number, label_name in enumerate(preset.labels):
        count = PER_LABEL * TIMES.get(label_name, 1)
        for lq, gt in _pictures(pool, label_name, count, rng):
            add(lq, number)
            gt_small.append(_small(preset, gt))
    gt_captions += captions(_readers(gt_small), "clean pictures")
    lq_captions = captions(_readers(lq_small), "degraded pictures")
    length = preset.embedder.clip.text_cfg.context_length
    with torch.inference_mode():
        ids = parts.tokenizer(gt_captions, length).to(device)
        f_GT = torch.cat([parts.clip.encode_text(part) for part in torch.split(ids, 256)])
    return {
        "views": torch.cat(views),
        "labels": torch.tensor(labels),
        "lq_ids": parts.tokenizer(lq_captions, length),
        "f_GT": f_GT.cpu().clone(),
        "captioned": len(chosen),
    }


def _how_seen(preset: Preset) -> list[object]:
    """What the views of a picture depend on."""
    config = preset.embedder
    return [config.clip.vision_cfg.image_size, config.resize, config.detail]


def _view_shape(preset: Preset) -> tuple[int, int, int]:
    size = preset.embedder.clip.vision_cfg.image_size
    return 6 if preset.embedder.detail else 3, size, size


def _view(preset: Preset, pixels: Bytes) -> Tensor:
    """H×W×3 → 1×(3|6)×S×S uint8: content view, and detail view where the preset has one."""
    config, picture = preset.embedder, to_tensor(pixels)
    size = config.clip.vision_cfg.image_size
    views = [content_view(picture, size, config.resize)]
    if config.detail:
        views.append(detail_view(picture, size))
    return (torch.cat(views, dim=1) * 255).round().to(torch.uint8)


def _small(preset: Preset, pixels: Bytes) -> Bytes:
    """The captioner's view of a picture, S×S×3 uint8: all that a caption depends on."""
    view = content_view(to_tensor(pixels), preset.captioner.image_size)[0].permute(1, 2, 0)
    return np.asarray((view * 255).round().to(torch.uint8).numpy())


def _readers(pictures: list[Bytes]) -> list[Callable[[], Bytes]]:
    return [partial(np.asarray, picture) for picture in pictures]


def _damaged_photo(
    photos: CaptionedPhotos, i: int, label: str, rng: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """(LQ, GT) of captioned photo ``i`` with fresh damage."""
    clean = photos.images[i].permute(1, 2, 0).numpy()
    seed, strength = int(rng.integers(2**31)), float(rng.uniform(0.2, 1))
    return degrade_bytes(clean, label, seed=seed, strength=strength), clean


def _pictures(
    pool: Pool, label: str, count: int, rng: np.random.Generator
) -> Iterator[tuple[Bytes, Bytes]]:
    """(LQ, GT) pictures of one label: fresh damage on cuts of the clean photos, and cuts of real pairs."""
    entries = [(i, pool.entries[i]) for i in pool.training]
    clean = [i for i, entry in entries if entry.label == "clean"]
    real = [i for i, entry in entries if entry.label == label and pool.is_real(entry)]
    for _ in range(count):
        if real and rng.random() < REAL_SHARE:
            i = int(rng.choice(real))
            rows, columns = _cut(pool.gt(i).shape, rng)
            yield pool.lq(i)[rows, columns], pool.gt(i)[rows, columns]
            continue
        gt = pool.gt(int(rng.choice(clean)))
        if rng.random() < 0.5:
            scale = float(rng.uniform(0.5, 1))
            gt = np.asarray(cv2.resize(gt, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        gt = gt[_cut(gt.shape, rng)]
        seed, strength = int(rng.integers(2**31)), float(rng.uniform(0.15, 1))
        yield degrade_bytes(np.ascontiguousarray(gt), label, seed=seed, strength=strength), gt


def _cut(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
    """A random window of 60 to 100 % of each side."""
    sizes = [int(n * rng.uniform(0.6, 1)) for n in shape[:2]]
    starts = [int(rng.integers(n - size + 1)) for n, size in zip(shape, sizes, strict=False)]
    rows, columns = (slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    return rows, columns
