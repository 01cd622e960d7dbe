"""Attention of the U-Net: linear attention, and the transformer with SCA before ICA (paper, section 3.3)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.nn.blocks import ChannelNorm

__all__ = [
    "Context",
    "CrossAttention",
    "LinearAttention",
    "SpatialTransformer",
    "TransformerContext",
]


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the pixels (Shen et al. 2021), pre-normed, with a skip around it."""

    HEADS = 4
    HEAD_DIM = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.HEADS * self.HEAD_DIM
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the same shape."""
        batch, _, height, width = x_BCHW.shape
        # Pixels before channels, as they lie in memory (channels-last): nothing of the picture's size is copied.
        x_BLC = self.norm(x_BCHW).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = (F.linear(x_BLC, part) for part in self.to_qkv.weight.flatten(1).chunk(3))
        q = q.view(batch, -1, self.HEADS, self.HEAD_DIM).softmax(dim=-1).flatten(2)
        out_BLC = torch.baddbmm(
            cast(Tensor, self.to_out.bias), q, self._context(k.softmax(dim=1), v)
        )
        out = out_BLC.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return cast(Tensor, self.out_norm(out) + x_BCHW)

    def _context(self, k_BLI: Tensor, v_BLI: Tensor) -> Tensor:
        """What the queries are multiplied with, B×I×C: the heads' contexts and the last projection in one matrix.

        All heads are multiplied with all, and what is not of one head is dropped: one large product is faster than
        several small ones.
        """
        head = torch.arange(self.HEADS, device=v_BLI.device).repeat_interleave(self.HEAD_DIM)
        within_heads = (head[:, None] == head) * (self.HEAD_DIM**-0.5 / k_BLI.shape[1])
        context_BII: Tensor = (k_BLI.transpose(1, 2) @ v_BLI) * within_heads.to(v_BLI.dtype)
        return context_BII @ self.to_out.weight.flatten(1).t()


class Context(NamedTuple):
    """Keys and values of one cross-attention, B×heads×N×head_dim: constant over pixels and steps."""

    key: Tensor
    value: Tensor


class TransformerContext(NamedTuple):
    """What one transformer attends to; None where it has no semantic cross-attention."""

    semantic: Context | None
    image: Context


class CrossAttention(nn.Module):
    """Multi-head attention from pixels to N context tokens, or from pixels to pixels."""

    def __init__(self, channels: int, head_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = channels // head_dim
        source = channels if context_dim is None else context_dim
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source, channels, bias=False)
        self.to_v = nn.Linear(source, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def prepare(self, tokens_BND: Tensor) -> Context:
        """Keys and values of the context, once for all pixels and steps."""
        return Context(self._split(self.to_k(tokens_BND)), self._split(self.to_v(tokens_BND)))

    def forward(self, x_BLC: Tensor, context: Context) -> Tensor:
        """B×L×C → B×L×C; with one context token B×1×C, since the softmax over one key is 1 for every pixel."""
        if context.key.shape[2] == 1:
            return cast(Tensor, self.to_out(_merge(context.value)))
        out = F.scaled_dot_product_attention(self._split(self.to_q(x_BLC)), *context)
        return cast(Tensor, self.to_out(_merge(out)))

    def _split(self, x_BLC: Tensor) -> Tensor:
        batch, length, channels = x_BLC.shape
        return x_BLC.view(batch, length, self.heads, channels // self.heads).transpose(1, 2)


def _merge(x_BHLD: Tensor) -> Tensor:
    return x_BHLD.transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """…×C → …×inner."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return cast(Tensor, value * F.gelu(gate))


class SpatialTransformer(nn.Module):
    """Self-attention, SCA, ICA and a feed-forward layer over the pixels of one level.

    The latent-diffusion block (Rombach et al. 2022) of DA-CLIP, with the paper's semantic cross-attention before the
    image cross-attention. It starts as the identity: its last projection is zero.
    """

    GROUPS = 32

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        context_dim: int,
        semantic: bool,
        self_attention: bool,
    ) -> None:
        super().__init__()
        self.pre_norm = ChannelNorm(channels)
        # Group norm averages over the picture; a local network must not, or tiles would differ from the whole.
        self.norm = (
            nn.GroupNorm(self.GROUPS, channels, eps=1e-6) if self_attention else nn.Identity()
        )
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(cast(Tensor, self.proj_out.bias))
        self.self_attention = CrossAttention(channels, head_dim) if self_attention else None
        self.self_norm = nn.LayerNorm(channels) if self_attention else None
        self.sca = CrossAttention(channels, head_dim, context_dim) if semantic else None
        self.sca_norm = nn.LayerNorm(channels) if semantic else None
        self.ica = CrossAttention(channels, head_dim, context_dim)
        self.ica_norm = nn.LayerNorm(channels)
        self.ff_norm = nn.LayerNorm(channels)
        self.ff = nn.Sequential(GEGLU(channels, 4 * channels), nn.Linear(4 * channels, channels))

    def prepare(self, text_BND: Tensor, image_BND: Tensor) -> TransformerContext:
        """Keys and values of both cross-attentions for B pictures."""
        semantic = None if self.sca is None else self.sca.prepare(text_BND)
        return TransformerContext(semantic, self.ica.prepare(image_BND))

    def forward(self, x_BCHW: Tensor, context: TransformerContext) -> Tensor:
        """B×C×H×W → the same shape."""
        skip = x_BCHW
        normed = self.pre_norm(x_BCHW)
        x = self.proj_in(self.norm(normed)).flatten(2).transpose(1, 2)
        if self.self_attention is not None and self.self_norm is not None:
            h = self.self_norm(x)
            x = x + self.self_attention(h, self.self_attention.prepare(h))
        if self.sca is not None and self.sca_norm is not None and context.semantic is not None:
            x = x + self.sca(self.sca_norm(x), context.semantic)
        x = x + self.ica(self.ica_norm(x), context.image)
        x = x + self.ff(self.ff_norm(x))
        x = x.transpose(1, 2).unflatten(2, x_BCHW.shape[-2:])
        return cast(Tensor, self.proj_out(x) + normed + skip)
