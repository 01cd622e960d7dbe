"""Fresh haze for each crop: real hazy pairs hold too few scenes to learn depth from, and are learnt by heart."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from training.data.pool import Bytes, Pool
from training.data.rehaze import airlight, fitted, haze_over, repainted, transmission

__all__ = ["Hazes"]

AS_IT_IS = 0.5
"""Share of the crops of real pairs that stay as they are."""

REPAINTED = 0.1
"""Share of the others that are repainted before they are hazed: where most are, all scenes are taken for too bright."""

FOREIGN = 0.15
"""Share of the others that get the haze of another scene."""

BEFORE_PHOTOS = 0.5
"""Share of the crops of photos that get the haze of a real scene instead of a synthetic one."""

DENSITIES = (0.7, 1.45)
"""Least and greatest density, over the pair's own."""

FOREIGN_DENSITIES = (0.8, 2.4)
"""The same for another scene's haze, of which a part may be nearly clear."""

AIRLIGHTS = (0.7, 1.0)
"""Least and greatest airlight: those of RESIDE's indoor pairs (Li et al. 2019)."""


class Hazes:
    """Draws haze over crops of a pool's hazy pictures."""

    def __init__(self, pool: Pool, real: Sequence[int]) -> None:
        """Prepare to draw.

        Args:
            pool: Where the pictures lie.
            real: Its entries of real hazy pairs, at least one.
        """
        self._pool, self._real = pool, real
        self._airlights: dict[int, float] = {}

    def draw(self, i: int, lq: Bytes, gt: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
        """A crop of entry ``i`` (S×S×3, LQ and GT), in haze and in colours that may be others."""
        if not self._pool.is_real(self._pool.entries[i]):
            return (self._foreign(gt, rng) if rng.random() < BEFORE_PHOTOS else lq), gt
        if rng.random() < AS_IT_IS:
            return lq, gt
        scene = repainted(gt, rng) if rng.random() < REPAINTED else gt
        if rng.random() < FOREIGN:
            return self._foreign(scene, rng), scene
        t = transmission(lq, gt, self._airlight(i)) ** _between(DENSITIES, rng)
        return haze_over(scene, t, rng.uniform(*AIRLIGHTS)), scene

    def _foreign(self, scene: Bytes, rng: np.random.Generator) -> Bytes:
        """A clean crop in the haze of some part of some real pair."""
        i = self._real[int(rng.integers(len(self._real)))]
        lq, gt = self._pool.lq(i), self._pool.gt(i)
        side = int(rng.integers(len(scene), min(lq.shape[:2]) + 1))
        top, left = (int(rng.integers(0, n - side + 1)) for n in lq.shape[:2])
        window = np.s_[top : top + side, left : left + side]
        whole = transmission(lq[window], gt[window], self._airlight(i))
        size = scene.shape[1::-1]
        t = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.float32)
        if rng.random() < 0.5:
            t = np.ascontiguousarray(t[:, ::-1])
        t = fitted(t, scene) ** _between(FOREIGN_DENSITIES, rng)
        return haze_over(scene, t, rng.uniform(*AIRLIGHTS))

    def _airlight(self, i: int) -> float:
        """That of a pair, estimated from the whole of it."""
        if i not in self._airlights:
            self._airlights[i] = airlight(self._pool.lq(i), self._pool.gt(i))
        return self._airlights[i]


def _between(densities: tuple[float, float], rng: np.random.Generator) -> np.float32:
    return np.float32(np.exp(rng.uniform(*np.log(densities))))
