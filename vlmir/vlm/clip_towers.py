"""CLIP (Radford et al. 2021) as it embeds: a ViT, and a causal transformer over words.

It computes what open_clip's ``CLIP`` of the same sizes does with the same weights, whose names its modules have.
Importing open_clip, which holds hundreds of other networks, takes longer than restoring a picture.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.config import ClipConfig, ClipTextConfig, ClipVisionConfig

__all__ = ["Clip"]


class Clip(nn.Module):
    """Both towers; the words' has its parts beside the picture's, as open_clip's has.

    Args:
        config: Their sizes.
    """

    attn_mask: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.visual = _Visual(config.vision_cfg, config.embed_dim)
        text = self._config = config.text_cfg
        length, width = text.context_length, text.width
        self.transformer = _Transformer(width, text.layers, text.heads)
        self.token_embedding = nn.Embedding(text.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # Each word sees itself and those before it.
        later = torch.full((length, length), -math.inf).triu(1)
        self.register_buffer("attn_mask", later, persistent=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """B×3×S×S normalised views → B×D, not normalised."""
        return cast(Tensor, self.visual(pixels))

    def encode_text(self, ids: Tensor) -> Tensor:
        """B×L ids → B×D, not normalised."""
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask))
        whole: Tensor = x[torch.arange(ids.shape[0], device=ids.device), _last(ids, self._config)]
        return whole @ self.text_projection


def _last(ids: Tensor, config: ClipTextConfig) -> Tensor:
    """The place of the token that stands for the whole caption, B."""
    if config.pool_type == "argmax":
        return ids.argmax(-1)
    return (ids == config.eos_id).int().argmax(-1)


class _Visual(nn.Module):
    def __init__(self, config: ClipVisionConfig, embed_dim: int) -> None:
        super().__init__()
        width, size = config.width, config.patch_size
        patches = (config.image_size // size) ** 2
        self.conv1 = nn.Conv2d(3, width, size, stride=size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Transformer(width, config.layers, width // config.head_width)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        return self._pool(self.transformer(self._embeds(pixels)))[0] @ self.proj

    # What follows has the names that open_clip gives it: callers steer either network block by block.

    def _embeds(self, pixels: Tensor) -> Tensor:
        """The tokens that the first block reads, B×N×width."""
        patches = self.conv1(pixels).flatten(2).mT
        # shape, not len: an exported graph must leave the batch open.
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return cast(Tensor, self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding))

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The token that stands for the whole picture, B×width, and the others."""
        x = self.ln_post(x)
        return x[:, 0], x[:, 1:]


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self._attend(self.ln_1(x), mask)
        return cast(Tensor, x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)))))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What ``self.attn`` computes; its own forward projects a transposed copy, which takes longer."""
        attn = self.attn
        qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        qkv = qkv.view(*x.shape[:2], 3, attn.num_heads, attn.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B×heads×N×width of a head
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return cast(Tensor, attn.out_proj(found.transpose(1, 2).flatten(2)))
