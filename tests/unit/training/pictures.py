"""Synthetic photos and the folders that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from tests.small import CAPTIONS

__all__ = ["scene", "write_captioned", "write_pairs", "write_photos"]


def scene(seed: int, height: int = 72, width: int = 96) -> np.ndarray:
    """A synthetic photo: smooth colour with a few shapes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 220, (4, 5, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(4):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(picture, centre, int(rng.integers(4, 15)), rng.integers(0, 255, 3).tolist(), -1)
    return picture


def write_photos(folder: Path, count: int) -> None:
    """Clean photos."""
    folder.mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), scene(i))


def write_pairs(folder: Path, label: str, count: int) -> None:
    """Real pairs, the degraded one brighter."""
    for side in ("LQ", "GT"):
        (folder / label / side).mkdir(parents=True)
    for i in range(count):
        gt = scene(100 + i)
        lq = np.clip(gt.astype(np.int16) + 40, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / label / "LQ" / f"{i}.png"), lq)
        cv2.imwrite(str(folder / label / "GT" / f"{i}.png"), gt)


def write_captioned(folder: Path, count: int) -> None:
    """Captioned photos, the last two for testing."""
    (folder / "images").mkdir(parents=True)
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / "images" / name), scene(i, 64, 64))
    (folder / "captions.json").write_text(json.dumps({name: CAPTIONS for name in names}))
    split = {"train": names[: count - 3], "val": names[-3:-2], "test": names[-2:]}
    (folder / "split.json").write_text(json.dumps(split))
