"""A captioner in memory, with the thread that it computes in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from services.common.batching import BatchCounts, Batcher
from vlmir.bundle import Bundle
from vlmir.image import Limits, decode
from vlmir.parts import build_captioner
from vlmir.vlm.captioner import BlipCaptioner

__all__ = ["CaptionerModel", "Look", "loader"]


class Look(NamedTuple):
    """All that the captioner sees of a picture."""

    view: Tensor
    """1×3×S×S, 0…1."""
    digest: bytes
    """SHA-256 of its numbers."""


class CaptionerModel:
    """Captions pictures in batches.

    Args:
        captioner: The network.
        max_batch: Pictures captioned together at most.
        capacity: Pictures admitted at most.
        counts: Where batches are counted.
    """

    def __init__(
        self, captioner: BlipCaptioner, *, max_batch: int, capacity: int, counts: BatchCounts
    ) -> None:
        self._captioner = captioner
        self.image_size = captioner.config.image_size
        """Side S of a view in pixels."""
        self.device = str(captioner.model.device)
        """Where it computes."""
        self.batcher = Batcher[Tensor, str](
            lambda views: captioner.caption_batch(torch.cat(views)),
            max_batch=max_batch,
            capacity=capacity,
            counts=counts,
        )
        """Views (1×3×S×S) to captions."""

    def look(self, data: bytes, limits: Limits) -> Look:
        """Decode a picture and make it small; runs in the caller's thread.

        Raises:
            ImageError: It cannot be read.
            LimitError: It is too big.
        """
        view = self._captioner.view(decode(data, limits).pixels)
        return Look(view, hashlib.sha256(view.numpy().tobytes()).digest())

    def warm_up(self) -> None:
        """Caption a grey picture."""
        grey = np.full((self.image_size, self.image_size, 3), 0.5, np.float32)
        self._captioner.caption(grey)

    def close(self) -> None:
        """Compute what waits, and end the thread."""
        self.batcher.close()


def loader(
    *, max_batch: int, capacity: int, counts: BatchCounts
) -> Callable[[Bundle], CaptionerModel]:
    """What makes a model of a bundle.

    Args:
        max_batch: Pictures captioned together at most.
        capacity: Pictures admitted at most.
        counts: Where batches are counted.
    """

    def load(bundle: Bundle) -> CaptionerModel:
        return CaptionerModel(
            build_captioner(bundle), max_batch=max_batch, capacity=capacity, counts=counts
        )

    return load
