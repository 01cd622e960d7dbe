"""Random crops of a pool with the conditions of the whole picture: the batches of stage 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.conditions import PoolConditions
from training.pool import Pool, degrade_bytes

__all__ = ["CropLoader", "Crops"]

MIX: Mapping[str, float] = {
    "noisy": 0.38,
    "rainy": 0.20,
    "hazy": 0.18,
    "raindrop": 0.05,
    "motion-blurry": 0.03,
    "jpeg-compressed": 0.03,
    "low-light": 0.035,
    "shadowed": 0.03,
    "snowy": 0.03,
    "uncompleted": 0.03,
    "clean": 0.05,
}
"""Share of each label in a batch: the paper's tasks first."""

REAL_SHARE = 0.5
"""Share of real pairs among the crops of a label that has some …"""
REAL_HAZE_SHARE = 0.65
"""… and of haze, whose real pairs are many."""

NULL_SHARE = 0.1
"""How often each condition is withheld, so that restoring without it works."""

PROTOTYPE_SHARE = 0.15
"""How often f_D is the label's prototype, so that naming the damage by hand works."""

MISJUDGED_SHARE = 0.5
"""How often a clean crop comes with another picture's f_D, so that a photo judged wrongly is left as it is."""


@dataclass
class Crops:
    """B crops: lq and gt B×3×S×S (0…1), conditions B×D with a B mask of the withheld ones each."""

    lq: Tensor
    gt: Tensor
    f_T: Tensor
    f_I: Tensor
    f_D: Tensor
    withheld: Tensor
    """3×B, bool: text, image, degradation."""


class CropLoader:
    """Draws batches; batch ``step`` is a function of the seed and ``step`` alone, so resuming is exact."""

    def __init__(
        self,
        pool: Pool,
        conditions: PoolConditions,
        labels: tuple[str, ...],
        seed: int,
        *,
        blind: bool = False,
    ) -> None:
        self._pool, self._conditions, self._seed = pool, conditions, seed
        self._null_share = 1.0 if blind else NULL_SHARE
        self._labels = labels
        synthetic: dict[str, list[int]] = {label: [] for label in labels}
        real: dict[str, list[int]] = {label: [] for label in labels}
        for i, entry in enumerate(pool.entries):
            (real if pool.is_real(entry) else synthetic)[entry.label].append(i)
        self._synthetic, self._real = synthetic, real
        self._shares = np.array([MIX[label] for label in labels]) / sum(MIX.values())

    @property
    def prototypes(self) -> Tensor:
        """Typical f_D of each label, K×D."""
        return self._conditions.prototypes

    def __call__(self, step: int, batch: int, size: int) -> Crops:
        """``batch`` crops of ``size``×``size`` pixels."""
        rng = np.random.default_rng([self._seed, step])
        chosen = rng.choice(len(self._labels), batch, p=self._shares)
        entries = [self._entry(self._labels[k], rng) for k in chosen]
        pairs = [self._crop(i, size, rng) for i in entries]
        index = torch.tensor(entries)
        f_D = self._conditions.f_D[self._judged(entries, rng)]
        named = torch.from_numpy(rng.random(batch) < PROTOTYPE_SHARE)
        prototypes = self.prototypes[torch.from_numpy(chosen)]
        return Crops(
            lq=_stack([lq for lq, _ in pairs]),
            gt=_stack([gt for _, gt in pairs]),
            f_T=self._conditions.f_T[index],
            f_I=self._conditions.f_I[index],
            f_D=torch.where(named[:, None], prototypes, f_D),
            withheld=torch.from_numpy(rng.random((3, batch)) < self._null_share),
        )

    def _entry(self, label: str, rng: np.random.Generator) -> int:
        share = REAL_HAZE_SHARE if label == "hazy" else REAL_SHARE
        real = self._real[label] and rng.random() < share
        places = self._real[label] if real else self._synthetic[label]
        return int(places[rng.integers(len(places))])

    def _judged(self, entries: list[int], rng: np.random.Generator) -> Tensor:
        """For each entry the one whose f_D it comes with: its own, but for some clean ones."""
        clean = np.array([self._pool.entries[i].label == "clean" for i in entries])
        wrong = clean & (rng.random(len(entries)) < MISJUDGED_SHARE)
        others = rng.integers(len(self._pool), size=len(entries))
        return torch.from_numpy(np.where(wrong, others, entries))

    def _crop(self, i: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One crop of LQ and GT, mirrored and turned alike."""
        lq, gt = self._pool.lq(i), self._pool.gt(i)
        top, left = (int(rng.integers(0, n - size + 1)) for n in lq.shape[:2])
        window = np.s_[top : top + size, left : left + size]
        lq, gt = lq[window], gt[window]
        entry = self._pool.entries[i]
        if entry.label == "noisy" and not self._pool.is_real(entry):
            # Noise is the same everywhere in a picture, so each crop can have its own: none is learnt by heart.
            seed = int(rng.integers(2**31))
            lq = degrade_bytes(gt, "noisy", seed=seed, strength=entry.strength)
        if rng.random() < 0.5:
            lq, gt = lq[:, ::-1], gt[:, ::-1]
        if entry.label not in _UPRIGHT:
            if rng.random() < 0.5:
                lq, gt = lq[::-1], gt[::-1]
            if rng.random() < 0.5:
                lq, gt = lq.swapaxes(0, 1), gt.swapaxes(0, 1)
        return lq, gt


_UPRIGHT = ("rainy", "hazy", "snowy", "raindrop")
"""Labels whose look depends on which way is down."""


def _stack(crops: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack([crop.transpose(2, 0, 1) for crop in crops]))
    return (stacked.float() / 255).contiguous(memory_format=torch.channels_last)
