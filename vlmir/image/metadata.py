"""EXIF and XMP: orientation set upright, thumbnail dropped, and EXIF in and out of TIFF files.

The image library carries EXIF in PNG, JPEG and WebP but not in TIFF, where the tags lie in the
picture's own directory. Pillow's TIFF directories, which know how to relocate themselves, do that.
"""

from __future__ import annotations

import re
import struct
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Exif

__all__ = ["add_exif_to_tiff", "read_exif_of_tiff", "upright_exif", "upright_xmp"]

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>\s*))[2-8]")
_STRIP_OFFSETS = 273
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
# Width and height before rotation, and the offset of a directory that is not taken along.
_DERIVED = {0xA002, 0xA003, 0xA005}
# What describes the photo; all other tags of a TIFF directory describe the storage of its pixels.
# ImageDescription, Make, Model, Software, DateTime, Artist, HostComputer, Rating, Copyright, XP….
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 18246, 33432, *range(40091, 40096))


def upright_exif(exif: bytes) -> bytes | None:
    """EXIF with its orientation tag set to 1 and without its thumbnail of the old picture.

    Only these few bytes change; those of the thumbnail stay behind, unreachable.

    Args:
        exif: A TIFF structure, with or without the `Exif` prefix of JPEG files.

    Returns:
        The block without prefix; None if its first directory is damaged.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    if not exif.startswith((b"II*\0", b"MM\0*")):
        return None
    patched = bytearray(exif)
    order = "<" if exif[:1] == b"I" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", patched, 4)
        (count,) = struct.unpack_from(order + "H", patched, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH8x", patched, entry)
            if tag == _ORIENTATION:
                struct.pack_into(order + ("I" if kind == 4 else "H"), patched, entry + 8, 1)
        # The link to the second directory, which describes the thumbnail.
        struct.pack_into(order + "I", patched, start + 2 + 12 * count, 0)
    except struct.error:
        return None
    return bytes(patched)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP with its copy of the orientation tag set to 1, so that no viewer rotates again."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def read_exif_of_tiff(data: bytes) -> bytes | None:
    """The descriptive tags of a TIFF's first page as an EXIF block without prefix.

    Returns:
        None where there are none, none that can be read, or the file is a BigTIFF.
    """
    from PIL.Image import Exif

    block = Exif()
    if not _copy_descriptive(data, block):
        return None
    return _packed(block)


def add_exif_to_tiff(tiff: bytes, exif: bytes) -> bytes:
    """A TIFF with the descriptive tags of an EXIF block added to its only page.

    A new directory is put in front; the old one stays behind, unused. An EXIF block that cannot be
    read adds nothing.
    """
    from PIL.Image import Exif

    page = Exif()
    page.load(tiff)
    if not _copy_descriptive(exif, page):
        return tiff
    # Pillow counts these offsets from the end of the directory it writes, where the rest follows.
    offsets = page[_STRIP_OFFSETS]
    shifted = [offset - 8 for offset in (offsets if isinstance(offsets, tuple) else (offsets,))]
    page[_STRIP_OFFSETS] = tuple(shifted)
    packed = _packed(page)
    return tiff if packed is None else packed + tiff[8:]


def _packed(block: Exif) -> bytes | None:
    """The block without prefix; without its place where that is told in a way that cannot be written, or None.

    Pillow writes each tag by its registered type and raises in many ways where a value does not fit it.
    """
    with warnings.catch_warnings(action="ignore"):
        for _ in range(2):
            with suppress(Exception):
                return block.tobytes().removeprefix(b"Exif\0\0")
            if _GPS_IFD in block:
                del block[_GPS_IFD]
    return None


def _copy_descriptive(source: bytes, target: Exif) -> bool:
    """Copy the photo's tags; whether any could be read."""
    from PIL.Image import Exif

    tags = Exif()
    found: dict[int, Any] = {}
    # Pillow raises and warns in many ways on damaged directories; the picture is good without them.
    with warnings.catch_warnings(action="ignore"), suppress(Exception):
        tags.load(source)
        found |= {tag: tags[tag] for tag in _DESCRIPTIVE if tag in tags}
        for tag in (_EXIF_IFD, _GPS_IFD):
            directory = tags.get_ifd(tag)
            kept = {key: directory[key] for key in directory.keys() - _DERIVED}
            found |= {tag: kept} if kept else {}
    for tag, value in found.items():
        target[tag] = value
    return bool(found)
