"""The U-Net's convolutional parts (DA-CLIP's ``module_util``; IR-SDE, Luo et al. 2023)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelNorm", "ResBlock", "TimeEmbedding", "conv"]


def conv(channels_in: int, channels_out: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution without bias that keeps height and width."""
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a gain and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the same shape."""
        channels = x_BCHW.shape[1]
        # Channels lie side by side in memory (channels-last), so this is one pass over it.
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, (channels,), self.g.view(channels)).permute(0, 3, 1, 2)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time index, then two linear layers (Vaswani et al. 2017; DDPM)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width)
        )

    def forward(self, t_B: Tensor) -> Tensor:
        """B time indices → B×4·width."""
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=t_B.device) * (-math.log(10000) / (half - 1)))
        angles = t_B[:, None].float() * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return cast(Tensor, self.mlp(waves.to(cast(nn.Linear, self.mlp[0]).weight.dtype)))


class ResBlock(nn.Module):
    """Two convolutions with a skip; the embedding of time and damage scales and shifts the first (FiLM)."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.film = nn.Linear(embedding, 2 * channels_out)
        self.conv1 = conv(channels_in, channels_out)
        self.conv2 = conv(channels_out, channels_out)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else conv(channels_in, channels_out, 1)
        self.act = nn.SiLU()

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """B×C_in×H×W and B×E → B×C_out×H×W."""
        film = self.film(self.act(embedding_BE))[:, :, None, None]
        scale, shift = film.chunk(2, dim=1)
        h = self.act(torch.addcmul(shift, self.conv1(x_BCHW), scale + 1))
        return cast(Tensor, self.act(self.conv2(h)) + self.skip(x_BCHW))
