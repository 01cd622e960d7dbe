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


def build_blip(config: CaptionerConfig, vocab_size: int) -> Any:
    """A ``BlipForConditionalGeneration`` of the given sizes with random weights, for our own tokenizer's ids."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {
        "vocab_size": vocab_size,
        "hidden_size": config.text_width,
        "encoder_hidden_size": config.vision_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_tokens,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "sep_token_id": EOS_ID,
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
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None]
        return self.caption_batch(content_view(pixels, self.config.image_size))[0]

    @torch.inference_mode()
    def caption_batch(self, views_BCSS: Tensor) -> list[str]:
        """B×3×S×S content views (0…1, S = ``config.image_size``) → B captions, by beam search."""
        ids = cast(
            Tensor,
            self.model.generate(
                pixel_values=normalize(views_BCSS),
                num_beams=self.config.beams,
                max_length=self.config.max_tokens,
            ),
        )
        return [self._tokenizer.decode(row[1:]) for row in ids.tolist()]
