"""The conditional U-Net that restores: ε̂ or x̂₀ from (x_t, μ, t, f_T, f_I, f_D).

DA-CLIP's ConditionalUNet (Luo et al. 2023, arXiv 2310.01018) plus the paper's semantic cross-attention. What does not
change from step to step is computed once per picture by :meth:`UNet.prepare`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.config import UNetConfig
from vlmir.nn.attention import LinearAttention, SpatialTransformer, TransformerContext
from vlmir.nn.blocks import ResBlock, TimeEmbedding, conv

__all__ = ["Conditioning", "UNet", "pad_to_multiple"]

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
"""Rough mean and standard deviation of photos on 0…1."""


class Conditioning(NamedTuple):
    """What :meth:`UNet.prepare` computes once for B pictures."""

    prompt: Tensor
    """B×E, added to the time embedding."""
    contexts: tuple[TransformerContext, ...]
    """One for each transformer, in the order they run."""


class DegradationPrompt(nn.Module):
    """f_D picks from a learnt prompt: prompt_mlp(softmax(text_mlp(f_D)) · prompt)."""

    def __init__(self, context_dim: int, embedding: int) -> None:
        super().__init__()
        # The softmax shares 1 among the entries; a prompt of their number's size keeps the signal near 1.
        self.prompt = nn.Parameter(embedding * torch.rand(1, embedding))
        self.text_mlp = nn.Sequential(
            nn.Linear(context_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.prompt_mlp = nn.Linear(embedding, embedding)

    def forward(self, f_D: Tensor) -> Tensor:
        """B×D → B×E."""
        picked = torch.softmax(self.text_mlp(f_D), dim=1) * self.prompt
        return cast(Tensor, self.prompt_mlp(picked))


class Level(nn.Module):
    """Two ResBlocks, more of them where the level is deep, an attention, and the layer that leaves the level."""

    def __init__(
        self,
        blocks: tuple[ResBlock, ResBlock],
        more: list[ResBlock],
        attention: nn.Module,
        leave: nn.Module,
    ) -> None:
        super().__init__()
        self.block1, self.block2 = blocks
        self.more = nn.ModuleList(more)
        self.attention = attention
        self.leave = leave


class UNet(nn.Module):
    """The network; see :class:`vlmir.config.UNetConfig` for its switches."""

    CHANNELS = 3

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, stride = config.width, config.stem_stride
        embedding = 4 * width
        pixels = self.CHANNELS * stride**2
        self.stem = conv(2 * pixels, width, config.stem_kernel)
        self.time = TimeEmbedding(width)
        self.degradation = DegradationPrompt(config.context_dim, embedding)
        self.null = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(config.context_dim)) for name in _CONDITIONS}
        )
        sizes = [width, *(width * m for m in config.multipliers)]
        last = len(config.multipliers) - 1
        more = config.more_blocks or (0,) * len(config.multipliers)
        downs: list[Level] = []
        ups: list[Level] = []
        for i, (inner, outer) in enumerate(itertools.pairwise(sizes)):
            kind = config.attention[i]
            down = conv(inner, outer) if i == last else nn.Conv2d(inner, outer, 4, 2, 1)
            down_blocks = _two(inner, inner, embedding)
            down_more = [ResBlock(inner, inner, embedding) for _ in range(more[i])]
            downs.append(Level(down_blocks, down_more, self._attend(kind, inner), down))
            up = conv(outer, inner) if i == 0 else _Upsample(outer, inner)
            up_blocks = _two(outer + inner, outer, embedding)
            up_more = [ResBlock(outer, outer, embedding) for _ in range(more[i])]
            ups.insert(0, Level(up_blocks, up_more, self._attend(kind, outer), up))
        self.downs, self.ups = nn.ModuleList(downs), nn.ModuleList(ups)
        self.middle1 = ResBlock(sizes[-1], sizes[-1], embedding)
        self.middle_attention = self._attend("transformer", sizes[-1])
        self.middle2 = ResBlock(sizes[-1], sizes[-1], embedding)
        self.final = ResBlock(2 * width, width, embedding)
        self.head = nn.Conv2d(width, pixels, 3, padding=1)
        self._initialise()

    @property
    def multiple(self) -> int:
        """Height and width are padded to a multiple of this many pixels."""
        return int(self.config.stem_stride * 2 ** len(self.config.multipliers))

    @property
    def device(self) -> torch.device:
        """Where it computes, and wants its arguments."""
        return self.stem.weight.device

    def prepare(
        self, f_T: Tensor | None, f_I: Tensor | None, f_D: Tensor | None, batch: int
    ) -> Conditioning:
        """Conditions of ``batch`` pictures, each B×D or None (a learnt null takes its place); any device and type."""
        given = {"text": f_T, "image": f_I, "degradation": f_D}
        text, image, degradation = (
            self.null[name].expand(batch, -1) if value is None else value
            for name, value in given.items()
        )
        text, image, degradation = (c.to(self.stem.weight) for c in (text, image, degradation))
        contexts = tuple(t.prepare(text[:, None], image[:, None]) for t in self._transformers())
        return Conditioning(self.degradation(degradation), contexts)

    def forward(self, x_t: Tensor, mu: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """x_t and mu (B×3×H×W), time indices (B) → the prediction, B×3×H×W."""
        height, width = x_t.shape[-2:]
        centre, scale = (PIXEL_MEAN, PIXEL_STD) if self.config.unit_scale else (0.0, 1.0)
        x = pad_to_multiple(torch.cat([x_t - mu, mu - centre], dim=1) / scale, self.multiple)
        x = F.pixel_unshuffle(x, self.config.stem_stride).to(self.stem.weight.dtype)
        x = stem = self.stem(x)
        embedding = self.time(t) + conditioning.prompt
        contexts = iter(conditioning.contexts)
        skips: list[Tensor] = []
        for level in self._levels(self.downs):
            x = level.block1(x, embedding)
            skips.append(x)
            x = _deepen(level, level.block2(x, embedding), embedding)
            x = _apply(level.attention, x, contexts)
            skips.append(x)
            x = level.leave(x)
        x = _apply(self.middle_attention, self.middle1(x, embedding), contexts)
        x = self.middle2(x, embedding)
        for level in self._levels(self.ups):
            x = level.block1(torch.cat([x, skips.pop()], dim=1), embedding)
            x = level.block2(torch.cat([x, skips.pop()], dim=1), embedding)
            x = _deepen(level, x, embedding)
            x = level.leave(_apply(level.attention, x, contexts))
        x = self.head(self.final(torch.cat([x, stem], dim=1), embedding))
        x = F.pixel_shuffle(x.to(x_t.dtype), self.config.stem_stride)
        return x[..., :height, :width] * scale

    def _initialise(self) -> None:
        """Convolutions keep the variance of what they read; the head and what more blocks add start at zero.

        Without normalisation layers PyTorch's default would shrink the signal by three in each. A deeper network
        so starts as the shallower one whose weights it is given.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.weight.any():  # not the zeroed projections
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        for level in itertools.chain(self._levels(self.downs), self._levels(self.ups)):
            for block in level.more:
                nn.init.zeros_(cast(ResBlock, block).conv2.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast(Tensor, self.head.bias))

    def _attend(self, kind: str, channels: int) -> nn.Module:
        if kind == "none":
            return nn.Identity()
        if kind == "linear":
            return LinearAttention(channels)
        config = self.config
        return SpatialTransformer(
            channels,
            head_dim=config.head_dim,
            context_dim=config.context_dim,
            semantic=config.semantic,
            self_attention=config.self_attention,
        )

    def _transformers(self) -> Iterator[SpatialTransformer]:
        """The transformers in the order they run."""
        layers = [level.attention for level in self._levels(self.downs)]
        layers += [self.middle_attention, *(level.attention for level in self._levels(self.ups))]
        return (layer for layer in layers if isinstance(layer, SpatialTransformer))

    @staticmethod
    def _levels(levels: nn.ModuleList) -> Iterator[Level]:
        return cast(Iterator[Level], iter(levels))


_CONDITIONS = ("text", "image", "degradation")


def _two(channels_in: int, channels_out: int, embedding: int) -> tuple[ResBlock, ResBlock]:
    block = ResBlock(channels_in, channels_out, embedding)
    return block, ResBlock(channels_in, channels_out, embedding)


class _Upsample(nn.Sequential):
    """Nearest neighbour ×2, then a 3×3 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
        )


def _deepen(level: Level, x: Tensor, embedding: Tensor) -> Tensor:
    for block in level.more:
        x = block(x, embedding)
    return x


def _apply(layer: nn.Module, x: Tensor, contexts: Iterator[TransformerContext]) -> Tensor:
    if isinstance(layer, SpatialTransformer):
        return cast(Tensor, layer(x, next(contexts)))
    return cast(Tensor, layer(x))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to a multiple: by reflection, or by the border where the picture is too small for it.

    B×C×H×W in and out; the network does so itself, and what it computes from a padded picture is the same.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode) if bottom or right else x
