"""The embedder: pictures and captions to the vectors that condition restoration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    """Embedding of the damage, D: the picture's own, or the typical one of the label where its parts overrule it."""
    degradations: dict[str, float]
    """Probability of each label; they sum to 1."""

    @property
    def degradation(self) -> str:
        """The most likely label."""
        return max(self.degradations, key=lambda label: self.degradations[label])


class ClipEmbedder:
    """Embeds pictures, captions and degradation labels (none of the vectors is normalised)."""

    def __init__(
        self, network: DegradationCLIP, tokenizer: Tokenizer, labels: Sequence[str]
    ) -> None:
        self.network = network.eval()
        self.labels = tuple(labels)
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def embed_image(self, pixels_HWC: npt.NDArray[np.float32]) -> ImageEmbedding:
        """One picture, H×W×3, RGB, 0…1, of any size."""
        views = torch.cat([self.views(window) for window in self._windows(pixels_HWC)])
        if len(views) > 1:
            views = torch.cat([views, views.flip(-1)])
        f_D, control = self.network.controller(views)
        f_I = self.network.encode_content(views[:1], [hidden[:1] for hidden in control])
        logits = self.network.degradation_logits(f_D)
        judged = logits.mean(0)
        label = judged.argmax()
        # Where the windows overrule the whole, its f_D would ask for another restoration than the one reported.
        damage = f_D[0] if logits[0].argmax() == label else self.network.prototypes[label]
        probabilities = judged.softmax(dim=-1).tolist()
        return ImageEmbedding(f_I[0], damage, dict(zip(self.labels, probabilities, strict=True)))

    def _windows(self, pixels_HWC: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """The whole picture, then the windows in its corners."""
        yield pixels_HWC
        share = self.network.config.window
        if share is None:
            return
        height, width = pixels_HWC.shape[:2]
        rows, columns = math.ceil(height * share), math.ceil(width * share)
        # Starting at multiples of eight, so that JPEG's block grid keeps its phase.
        top, left = (height - rows) // 8 * 8, (width - columns) // 8 * 8
        for vertical in (slice(rows), slice(top, None)):
            for horizontal in (slice(columns), slice(left, None)):
                yield pixels_HWC[vertical, horizontal]

    def views(self, pixels_HWC: npt.NDArray[np.float32]) -> Tensor:
        """The network's input for one picture: 1×(3|6)×S×S."""
        config = self.network.config
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None]
        size = config.clip.vision_cfg.image_size
        return clip_input(pixels, size, resize=config.resize, detail=config.detail)

    @torch.inference_mode()
    def embed_views(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B×(3|6)×S×S views → f_I (B×D), f_D (B×D), label probabilities (B×K) of each view alone."""
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
