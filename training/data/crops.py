"""Random crops of a pool with the conditions of the whole picture: the batches of stage 2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from training.cache import fingerprint
from training.config import StageTwoConfig
from training.data.conditions import PoolConditions
from training.data.hazes import Hazes
from training.data.pool import Bytes, Entry, Pool, degrade_bytes, to_tensor

__all__ = ["CropLoader", "Crops"]

_UPRIGHT = ("rainy", "hazy", "snowy", "raindrop")
"""Labels whose look depends on which way is down."""

_WIDE = ("hazy", "low-light", "shadowed", "raindrop")
"""Labels of which a crop is sometimes a larger window made smaller: what to do depends on much of the picture, and
their look little on its scale."""


@dataclass
class Crops:
    """B crops: lq and gt B×3×S×S (0…1), conditions B×D, which are withheld, draws of time and noise."""

    lq: Tensor
    gt: Tensor
    f_T: Tensor
    f_I: Tensor
    f_D: Tensor
    withheld: Tensor
    """3×B, bool: text, image, degradation."""
    t: Tensor
    """B time indices in 1…T, int64."""
    noise: Tensor
    """Standard normal, B×3×S×S."""


class CropLoader:
    """Draws batches.

    Each crop is a function of the seed, the step and its place in the batch alone: resuming is exact, and workers that
    share a batch see together what one would see alone.
    """

    def __init__(
        self,
        pool: Pool,
        conditions: PoolConditions,
        labels: tuple[str, ...],
        config: StageTwoConfig,
        *,
        T: int,
        seed: int = 0,
        blind: bool = False,
    ) -> None:
        """Prepare to draw.

        Args:
            pool: Degraded and clean pictures.
            conditions: What the embedder says of each.
            labels: The preset's labels, in the order of the prototypes.
            config: Shares of labels, real pairs and conditions.
            T: Number of time steps.
            seed: Of all draws.
            blind: Withhold every condition.

        Raises:
            ValueError: A label with a share has no pictures in the pool.
        """
        self._pool, self._conditions, self._config = pool, conditions, config
        self._labels, self._T, self._seed = labels, T, seed
        self.data = fingerprint(pool.digest, len(pool))
        """What is drawn from."""
        self._null_share = 1.0 if blind else config.null_share
        self._synthetic: dict[str, list[int]] = {label: [] for label in labels}
        self._real: dict[str, list[int]] = {label: [] for label in labels}
        largest = max(config.size, *(phase.size for phase in config.phases), 0)
        for i in pool.training:
            entry = pool.entries[i]
            if entry.label not in labels or min(entry.height, entry.width) < largest:
                continue
            (self._real if pool.is_real(entry) else self._synthetic)[entry.label].append(i)
        shares = np.array([config.mix.get(label, 0.0) for label in labels])
        for label, share in zip(labels, shares, strict=True):
            if share and not (self._real[label] or self._synthetic[label]):
                raise ValueError(
                    f"The pool has no {label} pictures of {largest}×{largest} or more, but the mix asks for them."
                )
        self._shares = shares / shares.sum()
        self._hazes = Hazes(pool, self._real["hazy"]) if self._real.get("hazy") else None

    @property
    def prototypes(self) -> Tensor:
        """Typical f_D of each label, K×D."""
        return self._conditions.prototypes

    def __call__(self, step: int, size: int, places: Iterable[int]) -> Crops:
        """The crops of ``size``×``size`` pixels at these places of a step's batch."""
        return _stacked(
            [self._one(np.random.default_rng([self._seed, step, p]), size) for p in places]
        )

    def held_out(self, size: int, count: int = 4) -> dict[str, Crops]:
        """For each label the middles of up to ``count`` photos kept from training, with their own conditions."""
        found: dict[str, dict[int, int]] = {}
        for i in self._pool.held_out:
            entry = self._pool.entries[i]
            if entry.label in self._labels and min(entry.height, entry.width) >= size:
                found.setdefault(entry.label, {}).setdefault(entry.photo, i)
        return {
            label: _stacked([self._middle(i, size) for i in list(by_photo.values())[:count]])
            for label, by_photo in sorted(found.items())
        }

    def _middle(self, i: int, size: int) -> Crops:
        entry = self._pool.entries[i]
        top, left = (entry.height - size) // 2, (entry.width - size) // 2
        window = np.s_[top : top + size, left : left + size]
        noise = np.random.default_rng(i).standard_normal((1, 3, size, size), dtype=np.float32)
        return Crops(
            lq=to_tensor(self._pool.lq(i)[window]),
            gt=to_tensor(self._pool.gt(i)[window]),
            f_T=self._conditions.f_T[i][None],
            f_I=self._conditions.f_I[i][None],
            f_D=self._conditions.f_D[i][None],
            withheld=torch.full((3, 1), self._null_share == 1),
            t=torch.tensor([self._T]),
            noise=torch.from_numpy(noise),
        )

    def _one(self, rng: np.random.Generator, size: int) -> Crops:
        """A batch of one."""
        config = self._config
        number = int(rng.choice(len(self._labels), p=self._shares))
        i = self._entry(self._labels[number], rng)
        lq, gt = self._crop(i, size, rng)
        judged = self._judged(i, rng)
        f_D = self._conditions.f_D[judged]
        if rng.random() < config.prototype_share:
            f_D = self.prototypes[self._labels.index(self._pool.entries[judged].label)]
        t = int(rng.integers(1, self._T + 1))
        return Crops(
            lq=to_tensor(lq),
            gt=to_tensor(gt),
            f_T=self._conditions.f_T[i][None],
            f_I=self._conditions.f_I[i][None],
            f_D=f_D[None],
            withheld=torch.from_numpy(rng.random((3, 1)) < self._null_share),
            t=torch.tensor([self._T if rng.random() < config.at_T else t]),
            noise=torch.from_numpy(rng.standard_normal((1, 3, size, size), dtype=np.float32)),
        )

    def _entry(self, label: str, rng: np.random.Generator) -> int:
        real, synthetic = self._real[label], self._synthetic[label]
        share = self._config.real.get(label, self._config.real_share)
        places = real if real and (rng.random() < share or not synthetic) else synthetic
        return places[rng.integers(len(places))]

    def _judged(self, i: int, rng: np.random.Generator) -> int:
        """The entry whose f_D an entry comes with: its own, but for some clean ones."""
        wrong = (
            self._pool.entries[i].label == "clean" and rng.random() < self._config.misjudged_share
        )
        return int(rng.integers(len(self._pool))) if wrong else i

    def _crop(self, i: int, size: int, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
        """One crop of LQ and GT, mirrored and turned alike."""
        lq, gt = self._pool.lq(i), self._pool.gt(i)
        entry = self._pool.entries[i]
        side = size
        if entry.label in _WIDE and rng.random() < 0.5:
            side = int(rng.integers(size, min(lq.shape[:2]) + 1))
        top, left = (int(rng.integers(0, n - side + 1)) for n in lq.shape[:2])
        window = np.s_[top : top + side, left : left + side]
        lq, gt = (_made_smaller(part[window], size) for part in (lq, gt))
        if entry.label == "noisy" and not self._pool.is_real(entry):
            # Noise is the same everywhere in a picture, so each crop can have its own: none is learnt by heart.
            seed = int(rng.integers(2**31))
            lq = degrade_bytes(gt, "noisy", seed=seed, strength=entry.strength)
        elif self._is_transplanted(entry):
            lq = self._other_rain(gt, rng)
        elif entry.label == "hazy" and self._hazes:
            lq, gt = self._hazes.draw(i, lq, gt, rng)
        if rng.random() < 0.5:
            lq, gt = lq[:, ::-1], gt[:, ::-1]
        if entry.label not in _UPRIGHT:
            if rng.random() < 0.5:
                lq, gt = lq[::-1], gt[::-1]
            if rng.random() < 0.5:
                lq, gt = lq.swapaxes(0, 1), gt.swapaxes(0, 1)
        return lq, gt

    def _is_transplanted(self, entry: Entry) -> bool:
        """Whether an entry carries the streaks of a real pair; there must be pairs to train on to take others from."""
        rainy = entry.label == "rainy" and not entry.strength and not self._pool.is_real(entry)
        return rainy and bool(self._real["rainy"])

    def _other_rain(self, gt: Bytes, rng: np.random.Generator) -> Bytes:
        """A clean crop under the streaks of some real pair; its entry was rained on in the same way."""
        places = self._real["rainy"]
        i = places[rng.integers(len(places))]
        lq, clean = self._pool.lq(i), self._pool.gt(i)
        top, left = (int(rng.integers(0, n - len(gt) + 1)) for n in lq.shape[:2])
        window = np.s_[top : top + len(gt), left : left + len(gt)]
        streaks = lq[window].astype(np.int16) - clean[window]
        if rng.random() < 0.5:
            streaks = streaks[:, ::-1]
        return np.asarray(np.clip(gt + streaks, 0, 255), np.uint8)


def _made_smaller(pixels: Bytes, size: int) -> Bytes:
    if len(pixels) == size:
        return pixels
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA))


def _stacked(crops: list[Crops]) -> Crops:
    """Batches of one as one batch; pictures channels-last."""

    def joined(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(crop, name) for crop in crops], dim=dim)

    pictures = {
        name: joined(name).contiguous(memory_format=torch.channels_last)
        for name in ("lq", "gt", "noise")
    }
    vectors = {name: joined(name) for name in ("f_T", "f_I", "f_D", "t")}
    return Crops(**pictures, **vectors, withheld=joined("withheld", dim=1))
