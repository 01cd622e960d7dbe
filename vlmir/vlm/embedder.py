"""The embedder: pictures and captions to the vectors that condition restoration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmir.config import EmbedderConfig
from vlmir.errors import OptionError
from vlmir.vlm.clip import Controller, DegradationCLIP
from vlmir.vlm.preprocess import clip_input
from vlmir.vlm.tokenizer import Tokenizer

__all__ = ["ClipEmbedder", "ImageEmbedding", "ViewMaker", "judge", "with_mirrors"]


class ImageEmbedding(NamedTuple):
    """What the embedder sees in one picture."""

    f_I: Tensor
    """Embedding of the clean content, D."""
    f_D: Tensor
    """Embedding of the damage, D: the picture's own, or the typical one of the label, see :func:`judge`."""
    degradations: dict[str, float]
    """Probability of each label; they sum to 1."""

    @property
    def degradation(self) -> str:
        """The most likely label."""
        return max(self.degradations, key=lambda label: self.degradations[label])


@dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes the views of a picture: all that there is to do without a network.

    The views are the whole picture and, with ``window``, the windows in its corners.
    """

    image_size: int
    """Side S of a view in pixels."""
    resize: Literal["crop", "squash"]
    """How a picture or a window becomes a square: by the short side and a centre crop, or by both sides."""
    detail: bool
    """Whether the detail view's channels follow those of the content view."""
    window: float | None
    """Side of the windows as a share of the picture's; None: the whole alone."""

    @classmethod
    def of(cls, config: EmbedderConfig) -> ViewMaker:
        """The views that an embedder looks at."""
        return cls(
            image_size=config.clip.vision_cfg.image_size,
            resize=config.resize,
            detail=config.detail,
            window=config.window,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(V, C, S, S): views of a picture, channels, rows, columns."""
        size = self.image_size
        return (1 if self.window is None else 5, 6 if self.detail else 3, size, size)

    def __call__(self, pixels_HWC: npt.NDArray[np.float32]) -> Tensor:
        """One picture, H×W×3, RGB, 0…1, of any size → V×C×S×S, normalised, without mirror images."""
        return torch.cat([self.view(window) for window in self.windows(pixels_HWC)])

    def view(self, pixels_HWC: npt.NDArray[np.float32]) -> Tensor:
        """One picture or one window of it → 1×C×S×S, normalised."""
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None]
        return clip_input(pixels, self.image_size, resize=self.resize, detail=self.detail)

    def windows(self, pixels_HWC: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """The whole picture, then the windows in its corners."""
        yield pixels_HWC
        if self.window is None:
            return
        height, width = pixels_HWC.shape[:2]
        rows, columns = math.ceil(height * self.window), math.ceil(width * self.window)
        # Starting at multiples of eight, so that JPEG's block grid keeps its phase.
        top, left = (height - rows) // 8 * 8, (width - columns) // 8 * 8
        for vertical in (slice(rows), slice(top, None)):
            for horizontal in (slice(columns), slice(left, None)):
                yield pixels_HWC[vertical, horizontal]


def with_mirrors(views_VCSS: Tensor) -> Tensor:
    """The views that the network judges: with their mirror images behind them, unless there is the whole alone.

    Returns:
        W×C×S×S: W = 2V, or 1 for V = 1.
    """
    return torch.cat([views_VCSS, views_VCSS.flip(-1)]) if len(views_VCSS) > 1 else views_VCSS


def judge(
    f_I: Tensor,
    f_D_WD: Tensor,
    logits_WK: Tensor,
    prototypes_KD: Tensor,
    labels: Sequence[str],
    *,
    typical: bool,
) -> ImageEmbedding:
    """What the network saw in the views of one picture, as one judgement.

    Args:
        f_I: Embedding of the first view's content, D.
        f_D_WD: Embedding of the damage in each view, the whole picture first.
        logits_WK: Logits of the labels in each view.
        prototypes_KD: Typical f_D of each label.
        labels: Names of the K labels.
        typical: See :attr:`vlmir.config.EmbedderConfig.typical_damage`.
    """
    judged = logits_WK.mean(0)
    label = judged.argmax()
    # Where the windows overrule the whole, its f_D would ask for another restoration than the one reported.
    overruled = logits_WK[0].argmax() != label
    damage = prototypes_KD[label] if typical or overruled else f_D_WD[0]
    probabilities = judged.softmax(dim=-1).tolist()
    return ImageEmbedding(f_I, damage, dict(zip(labels, probabilities, strict=True)))


class ClipEmbedder:
    """Embeds pictures, captions and degradation labels (none of the vectors is normalised).

    Args:
        network: Its weights must not change any more.
        tokenizer: Of its text tower.
        labels: Names of its K labels.
        voting: Type in which views beyond the first are judged, which only vote on the label.
    """

    def __init__(
        self,
        network: DegradationCLIP,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        voting: torch.dtype = torch.float32,
    ) -> None:
        self.network = network.eval()
        self.labels = tuple(labels)
        self._tokenizer = tokenizer
        self._voting = voting

    @torch.inference_mode()
    def embed_image(self, pixels_HWC: npt.NDArray[np.float32]) -> ImageEmbedding:
        """One picture, H×W×3, RGB, 0…1, of any size."""
        views = with_mirrors(self.view_maker(pixels_HWC))
        f_I, f_D, logits = (tensor[0] for tensor in self.see(views[None]))
        network = self.network
        typical = network.config.typical_damage
        return judge(f_I, f_D, logits, network.prototypes, self.labels, typical=typical)

    @torch.inference_mode()
    def see(self, views_PWCSS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P pictures of W views each → f_I of each first view (P×D), f_D (P×W×D) and logits (P×W×K) of each view."""
        first, others = views_PWCSS[:, 0], views_PWCSS[:, 1:]
        f_D, control = self.network.controller(first)
        f_I = self.network.encode_content(first, control)
        f_D = f_D[:, None]
        if others.shape[1]:
            voted = self._voter.damage(others.flatten(0, 1).to(self._voting))
            f_D = torch.cat([f_D, voted.float().view(*others.shape[:2], -1)], dim=1)
        logits = self.network.degradation_logits(f_D)
        return f_I, f_D, logits

    @cached_property
    def _voter(self) -> Controller:
        """Judges views beyond the first; not made where there is one alone, since it takes as much memory again."""
        return self.network.controller.judging(self._voting)

    @property
    def view_maker(self) -> ViewMaker:
        """Makes the views that this embedder looks at."""
        return ViewMaker.of(self.network.config)

    def views(self, pixels_HWC: npt.NDArray[np.float32]) -> Tensor:
        """The network's input for one picture: 1×(3|6)×S×S."""
        return self.view_maker.view(pixels_HWC)

    @torch.inference_mode()
    def embed_views(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B×(3|6)×S×S views → f_I (B×D), f_D (B×D), label probabilities (B×K) of each view alone."""
        f_I, f_D = self.network.encode_image(views)
        return f_I, f_D, self.network.degradation_logits(f_D).softmax(dim=-1)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """B captions → B×L token ids."""
        return self._tokenizer(captions, self.network.config.clip.text_cfg.context_length)

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """B captions of damaged pictures → f_T, B×D."""
        return self.embed_ids(self.tokenize(captions))

    @torch.inference_mode()
    def embed_ids(self, ids_BL: Tensor) -> Tensor:
        """B captions as token ids → f_T, B×D."""
        return self.network.encode_caption(ids_BL)

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
