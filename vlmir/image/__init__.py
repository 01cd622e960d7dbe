"""Pictures: bytes to pixels and back, colour, tiles. Knows NumPy, nothing of networks."""

from __future__ import annotations

from vlmir.formats import FORMATS
from vlmir.image.decoder import decode, read_file
from vlmir.image.encoder import check_encodable, encode
from vlmir.image.picture import Image, Limits
from vlmir.image.tiles import TilePlan, Window, plan_tiles

__all__ = [
    "FORMATS",
    "Image",
    "Limits",
    "TilePlan",
    "Window",
    "check_encodable",
    "decode",
    "encode",
    "plan_tiles",
    "read_file",
]
