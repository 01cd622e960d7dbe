"""From a picture of any size to CLIP's and BLIP's input: the same pixels in training, ONNX and serving.

Two views exist. The *content* view is the whole picture, reduced (what CLIP always saw). The *detail* view is a mosaic
of full-resolution patches taken evenly over the picture, with their edges: noise grain, JPEG blocks and small blur,
which a reduced picture hides, are in plain sight there. A controller that sees both can tell what is wrong at any
picture size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLIP_MEAN", "CLIP_STD", "clip_input", "content_view", "detail_view", "normalize"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means of CLIP's training data, RGB, 0…1 (OpenAI CLIP; BLIP uses the same)."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations of CLIP's training data, RGB, 0…1."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in luma (BT.601)."""

DETAIL_TILE = 32
"""Side of one mosaic patch in pixels: four JPEG blocks, and long enough for the common motion blur."""


def content_view(
    pixels_BCHW: Tensor, size: int, resize: Literal["crop", "squash"] = "squash"
) -> Tensor:
    """The whole picture as a square.

    Args:
        pixels_BCHW: B×3×H×W, RGB, 0…1, any H and W.
        size: Side of the result in pixels.
        resize: ``crop`` scales the short side to ``size`` and cuts the centre (the reference; it loses the sides of a
            wide picture); ``squash`` scales both sides.

    Returns:
        B×3×size×size, 0…1, bicubic with antialiasing.
    """
    height, width = pixels_BCHW.shape[-2:]
    shape = (size, size)
    if resize == "crop":
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    small = F.interpolate(
        pixels_BCHW, shape, mode="bicubic", antialias=True, align_corners=False
    ).clamp_(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return small[..., top : top + size, left : left + size]


def detail_view(pixels_BCHW: Tensor, size: int) -> Tensor:
    """A mosaic of full-resolution patches, spread evenly over the picture, as luma and its edges.

    The channels are luma and the square roots of its absolute differences to the right and to the bottom neighbour:
    noise, block borders, streaks and blur show as plain brightness there. Patch corners lie on multiples of eight
    pixels, so that JPEG's block grid keeps its phase. A picture smaller than a row of patches is repeated by
    reflection.

    Args:
        pixels_BCHW: B×3×H×W, RGB, 0…1.
        size: Side of the mosaic in pixels, a multiple of the patch side 32.

    Returns:
        B×3×size×size, 0…1: patch (r, c) of the mosaic is the picture around the same relative place.
    """
    rows = _mosaic_index(pixels_BCHW.shape[-2], size)
    columns = _mosaic_index(pixels_BCHW.shape[-1], size)
    below = (rows + 1).clamp(max=pixels_BCHW.shape[-2] - 1)
    right = (columns + 1).clamp(max=pixels_BCHW.shape[-1] - 1)
    luma = (pixels_BCHW * pixels_BCHW.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    here = luma[..., rows[:, None], columns[None, :]]
    dx = (luma[..., rows[:, None], right[None, :]] - here).abs().sqrt()
    dy = (luma[..., below[:, None], columns[None, :]] - here).abs().sqrt()
    return torch.cat([here, dx, dy], dim=1)


def _mosaic_index(length: int, size: int) -> Tensor:
    """Source index of each of the mosaic's ``size`` rows (or columns)."""
    count = size // DETAIL_TILE
    spread = max(length - DETAIL_TILE, 0)
    starts = (torch.arange(count) * spread // max(count - 1, 1)) // 8 * 8
    index = (starts[:, None] + torch.arange(DETAIL_TILE)).reshape(-1)
    period = max(2 * (length - 1), 1)
    folded = index % period
    return torch.minimum(folded, period - folded)


def normalize(pixels_BCHW: Tensor) -> Tensor:
    """(pixels − mean) / std per channel; the channels are one or more RGB triples."""
    triples = pixels_BCHW.shape[1] // 3
    mean = pixels_BCHW.new_tensor(CLIP_MEAN * triples).view(1, -1, 1, 1)
    std = pixels_BCHW.new_tensor(CLIP_STD * triples).view(1, -1, 1, 1)
    return (pixels_BCHW - mean) / std


def clip_input(
    pixels_BCHW: Tensor, size: int, *, resize: Literal["crop", "squash"], detail: bool
) -> Tensor:
    """CLIP's input for B pictures of one size: normalised content view, then the detail view if asked.

    Returns:
        B×3×size×size, or B×6×size×size with ``detail``.
    """
    views = [content_view(pixels_BCHW, size, resize)]
    if detail:
        views.append(detail_view(pixels_BCHW, size))
    return normalize(torch.cat(views, dim=1))
