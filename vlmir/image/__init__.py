"""Pictures: bytes to pixels and back, colour, tiles. Knows NumPy, nothing of networks."""

from __future__ import annotations

from vlmir.image.decoder import decode
from vlmir.image.encoder import encode
from vlmir.image.picture import FORMATS, Image, Limits
from vlmir.image.tiles import TilePlan, Window, plan_tiles

__all__ = [
    "FORMATS",
    "Image",
    "Limits",
    "TilePlan",
    "Window",
    "decode",
    "encode",
    "plan_tiles",
]
