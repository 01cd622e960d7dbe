"""A folder of captioned photos, held in memory as bytes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["CaptionedPhotos", "captions_and_split"]


class CaptionedPhotos:
    """``captions.json``, ``split.json`` and ``images/``, with photos of one size.

    Attributes:
        names: N file names.
        images: N×3×S×S uint8, RGB.
        captions: N lists of captions.
        flat_captions: All captions in one list, photo after photo.
        train: Indices of the training photos (official train and val split), int64.
        test: Indices of the test photos, int64.
    """

    def __init__(self, folder: Path) -> None:
        captions: dict[str, list[str]] = json.loads((folder / "captions.json").read_text("utf-8"))
        split: dict[str, list[str]] = json.loads((folder / "split.json").read_text("utf-8"))
        self.names = sorted(captions)
        self.images = torch.from_numpy(np.stack([_read(folder / "images" / n) for n in self.names]))
        self.captions = [captions[name] for name in self.names]
        self.flat_captions = [caption for group in self.captions for caption in group]
        counts = torch.tensor([len(group) for group in self.captions])
        self._first = counts.cumsum(0) - counts
        self._count = counts
        place = {name: i for i, name in enumerate(self.names)}
        self.train = torch.tensor([place[n] for n in split["train"] + split["val"]])
        self.test = torch.tensor([place[n] for n in split["test"]])

    @property
    def train_captions(self) -> list[str]:
        """Every caption of the training photos."""
        return [caption for i in self.train.tolist() for caption in self.captions[i]]

    def batch(self, indices: Tensor) -> Tensor:
        """Photos as B×3×S×S float32, 0…1."""
        return self.images[indices].float() / 255

    def pick_caption(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """For each photo the place in ``flat_captions`` of one of its captions, drawn evenly."""
        draw = torch.rand(len(indices), generator=generator)
        return self._first[indices] + (draw * self._count[indices]).long()


def captions_and_split(folder: Path) -> tuple[bytes, bytes]:
    """What tells one folder of captioned photos from another: the bytes of ``captions.json`` and of ``split.json``.

    Raises:
        FileNotFoundError: One of them is missing.
    """
    return (folder / "captions.json").read_bytes(), (folder / "split.json").read_bytes()


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise FileNotFoundError(f"{path} is missing or no image.")
    return np.ascontiguousarray(image.transpose(2, 0, 1))
