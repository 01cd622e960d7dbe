"""The embedder: pictures and captions to the vectors that condition restoration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmir.errors import OptionError
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.preprocess import clip_input
from vlmir.vlm.tokenizer import Tokenizer

__all__ = ["ClipEmbedder", "ImageEmbedding"]


class ImageEmbedding(NamedTuple):
    """What the embedder sees in one picture."""

    f_I: Tensor
    """Embedding of the clean content, D."""
    f_D: Tensor
    """Embedding of the damage, D."""
    degradations: dict[str, float]
    """Probability of each label; they sum to 1."""


class ClipEmbedder:
    """Embeds pictures, captions and degradation labels (none of the vectors is normalised)."""

    def __init__(
        self, network: DegradationCLIP, tokenizer: Tokenizer, labels: Sequence[str]
    ) -> None:
        self.network = network.eval()
        self.labels = tuple(labels)
        self._tokenizer = tokenizer

    def embed_image(self, pixels_HWC: npt.NDArray[np.float32]) -> ImageEmbedding:
        """One picture, H×W×3, RGB, 0…1, of any size."""
        f_I, f_D, probabilities = self.embed_views(self.views(pixels_HWC))
        return ImageEmbedding(
            f_I[0], f_D[0], dict(zip(self.labels, probabilities[0].tolist(), strict=True))
        )

    def views(self, pixels_HWC: npt.NDArray[np.float32]) -> Tensor:
        """The network's input for one picture: 1×(3|6)×S×S."""
        config = self.network.config
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None]
        size = config.clip.vision_cfg.image_size
        return clip_input(pixels, size, resize=config.resize, detail=config.detail)

    @torch.inference_mode()
    def embed_views(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B×(3|6)×S×S views → f_I (B×D), f_D (B×D), label probabilities (B×K)."""
        f_I, f_D = self.network.encode_image(views)
        return f_I, f_D, self.network.degradation_logits(f_D).softmax(dim=-1)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """B captions → B×L token ids."""
        return self._tokenizer(captions, self.network.config.clip.text_cfg.context_length)

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """B captions of damaged pictures → f_T, B×D."""
        return self.network.encode_caption(self.tokenize(captions))

    def embed_label(self, label: str) -> Tensor:
        """The typical f_D (D) of a named degradation.

        Raises:
            OptionError: The label is unknown.
        """
        if label not in self.labels:
            raise OptionError(
                f"Unknown degradation {label!r}; choose from {', '.join(self.labels)}."
            )
        return self.network.prototypes[self.labels.index(label)]
