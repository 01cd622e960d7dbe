"""The captioner: a BLIP (Li et al. 2022, arXiv 2201.12086) that says in one sentence what a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmir.config import CaptionerConfig
from vlmir.vlm.preprocess import content_view, normalize
from vlmir.vlm.tokenizer import BOS_ID, EOS_ID, PAD_ID

__all__ = ["BlipCaptioner", "build_blip"]


class _Decoder(Protocol):
    def decode(self, ids: Sequence[int]) -> str: ...


def build_blip(
    config: CaptionerConfig,
    vocab_size: int,
    *,
    positions: int | None = None,
    bos_id: int = BOS_ID,
    eos_id: int = EOS_ID,
) -> Any:
    """A ``BlipForConditionalGeneration`` of the given sizes with random weights, to be trained.

    Args:
        config: The captioner of a preset.
        vocab_size: Rows of the word embeddings.
        positions: Rows of the position embeddings; None: as many as a caption has tokens.
        bos_id: Id that a caption begins with; unless given, our own tokenizer's.
        eos_id: Id that it ends with; likewise.
    """
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {
        "vocab_size": vocab_size,
        "hidden_size": config.text_width,
        "encoder_hidden_size": config.vision_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": positions or config.max_tokens,
        "pad_token_id": PAD_ID,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "sep_token_id": eos_id,
        "projection_dim": config.text_width,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.text_width,
    }
    return BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=config.text_width)
    )


class BlipCaptioner:
    """Captions pictures one by one or in batches."""

    def __init__(self, config: CaptionerConfig, model: Any, tokenizer: _Decoder) -> None:
        self.config = config
        self.model = model.eval()
        self._tokenizer = tokenizer

    def caption(self, pixels_HWC: npt.NDArray[np.float32]) -> str:
        """H×W×3 picture, RGB, 0…1 → one English sentence in lower case."""
        return self.caption_batch(self.view(pixels_HWC))[0]

    def view(self, pixels_HWC: npt.NDArray[np.float32]) -> Tensor:
        """H×W×3 picture, RGB, 0…1 → 1×3×S×S content view, all that the network sees of it."""
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None]
        return content_view(pixels, self.config.image_size)

    @torch.inference_mode()
    def caption_batch(self, views_BCSS: Tensor) -> list[str]:
        """B×3×S×S content views (0…1, S = ``config.image_size``) → B captions, by beam search."""
        ids = cast(
            Tensor,
            self.model.generate(
                pixel_values=normalize(views_BCSS).to(self.model.device),
                num_beams=self.config.beams,
                max_length=self.config.max_tokens,
            ),
        )
        return [self._tokenizer.decode(row[1:]) for row in ids.tolist()]
