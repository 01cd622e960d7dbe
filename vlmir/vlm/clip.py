"""CLIP with a degradation controller and a LoRA caption encoder (paper, section 3.2; DA-CLIP, arXiv 2310.01018).

Three encoders share one space of dimension D:

* the frozen visual tower, steered by the controller's hidden states, gives f_I, the embedding of the *clean* content;
* the controller, a trained copy of that tower, gives f_D, the embedding of the *damage*;
* the caption encoder, the frozen text tower plus a low-rank update, gives f_T of a caption of the damaged picture.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.config import ClipConfig, EmbedderConfig

__all__ = ["Controller", "DegradationCLIP", "build_clip", "encode_tower"]


def build_clip(config: ClipConfig) -> Any:
    """An open_clip ``CLIP`` of the given sizes with random weights."""
    import dataclasses

    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        config.embed_dim,
        CLIPVisionCfg(**dataclasses.asdict(config.vision_cfg)),
        CLIPTextCfg(**dataclasses.asdict(config.text_cfg)),
    )


def encode_tower(tower: Any, pixels: Tensor, control: list[Tensor] | None = None) -> Tensor:
    """Run an open_clip visual tower, adding ``control[i]`` (B×N×width) after block i.

    Returns:
        B×D, not normalised.
    """
    x = tower._embeds(pixels)
    for i, block in enumerate(tower.transformer.resblocks):
        x = block(x)
        if control is not None:
            x = x + control[i]
    return cast(Tensor, tower._pool(x)[0] @ tower.proj)


class Controller(nn.Module):
    """A trained copy of the visual tower: reads the damage, and corrects the frozen tower's hidden states.

    Each block's hidden state passes a zero-initialised linear layer, so training starts from plain CLIP. As in the
    reference the order is reversed: block i of the frozen tower receives the hidden state of block n−1−i.
    """

    def __init__(self, tower: Any, *, detail: bool) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        width = tower.class_embedding.shape[0]
        self.zero = nn.ModuleList(nn.Linear(width, width) for _ in tower.transformer.resblocks)
        for linear in self.zero:
            nn.init.zeros_(cast(nn.Linear, linear).weight)
            nn.init.zeros_(cast(nn.Linear, linear).bias)
        if detail:
            self._see_detail()

    def _see_detail(self) -> None:
        """Let the patch embedding read three more channels; they start as a copy, so that edges are seen at once."""
        conv = self.tower.conv1
        wide = nn.Conv2d(6, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
        with torch.no_grad():
            wide.weight.copy_(torch.cat([conv.weight, conv.weight], dim=1) / 2**0.5)
        self.tower.conv1 = wide

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """B×(3|6)×S×S normalised pixels → f_D (B×D, not normalised) and the corrections for blocks 0…n−1."""
        x = self.tower._embeds(pixels)
        hidden = []
        for block, zero in zip(self.tower.transformer.resblocks, self.zero, strict=True):
            x = block(x)
            hidden.append(zero(x))
        return self.tower._pool(x)[0] @ self.tower.proj, hidden[::-1]


class DegradationCLIP(nn.Module):
    """The embedder's network: frozen CLIP, controller, LoRA caption encoder, and two learnt temperatures.

    ``label_embeddings`` (K×D) are the frozen text tower's embeddings of the labels; ``prototypes`` (K×D) are the
    typical f_D of each label, which stand in for f_D where a user names the damage.
    """

    label_embeddings: Tensor
    prototypes: Tensor

    def __init__(self, config: EmbedderConfig, label_count: int, clip: Any | None = None) -> None:
        """Build the network.

        Args:
            config: Sizes and switches.
            label_count: Number K of degradation labels.
            clip: Pretrained open_clip CLIP to start from; None builds one with random weights.
        """
        super().__init__()
        self.config = config
        self.clip = clip if clip is not None else build_clip(config.clip)
        self.clip.requires_grad_(False)
        self.controller = Controller(self.clip.visual, detail=config.detail).requires_grad_(True)
        self.caption_encoder = _lora_text_encoder(self.clip, config)
        self.logit_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        self.degradation_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        empty = torch.zeros(label_count, config.clip.embed_dim)
        self.register_buffer("label_embeddings", empty)
        self.register_buffer("prototypes", empty.clone())

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """B×(3|6)×S×S normalised views → (f_I, f_D), each B×D, not normalised."""
        f_D, control = self.controller(pixels)
        return encode_tower(self.clip.visual, pixels[:, :3], control), f_D

    def encode_text(self, ids: Tensor) -> Tensor:
        """B×L ids of clean text (GT captions, label names) → B×D by the frozen text tower, not normalised."""
        return cast(Tensor, self.clip.encode_text(ids))

    def encode_caption(self, ids: Tensor) -> Tensor:
        """B×L ids of captions of damaged pictures → f_T, B×D by the LoRA encoder, not normalised."""
        return cast(Tensor, self.caption_encoder(ids))

    def degradation_logits(self, f_D: Tensor) -> Tensor:
        """Scaled cosine similarity of f_D (B×D) with the K label embeddings: B×K logits."""
        similarity = F.normalize(f_D, dim=-1) @ F.normalize(self.label_embeddings, dim=-1).T
        return self.degradation_scale.exp() * similarity

    @torch.no_grad()
    def set_labels(self, ids_KL: Tensor) -> None:
        """Embed the label names; until prototypes are measured, these stand in for them too."""
        self.label_embeddings.copy_(self.encode_text(ids_KL))
        self.prototypes.copy_(self.label_embeddings)


class _TextEncoder(nn.Module):
    """A copy of CLIP's text side alone, with the module names that LoRA targets."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        text = copy.deepcopy(clip)
        del text.visual
        self.text = text

    def forward(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.text.encode_text(ids))


def _lora_text_encoder(clip: Any, config: EmbedderConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=int(config.lora.alpha),
        target_modules=list(config.lora.target_modules),
    )
    return cast(nn.Module, get_peft_model(cast(Any, _TextEncoder(clip)), lora))
