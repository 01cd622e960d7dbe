"""Bytes to pictures: PNG, JPEG, WebP, TIFF.

libvips does the work: unlike Pillow it reads 16-bit RGB and passes ICC and XMP on in every format.
Only the loader of the format found in the first bytes is ever called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import ImageError, LimitError
from vlmir.image.libvips import DEFAULT_DPI, MM_PER_INCH, libvips
from vlmir.image.metadata import read_exif_of_tiff, upright_exif, upright_xmp
from vlmir.image.picture import Image, Limits
from vlmir.image.sniff import sniff_format

__all__ = ["decode", "read_file"]

# The strictness at which libvips refuses every cut file: it passes over a cut tile of a TIFF as a
# mere warning, while in JPEG warnings are also about harmless stray bytes.
_FAIL_ON = {"png": "error", "jpeg": "error", "webp": "error", "tiff": "warning"}
_CHANNELS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb16": 3, "cmyk": 4}


def decode(data: bytes, limits: Limits | None = None) -> Image:
    """Read an encoded picture, upright, without loss.

    Of an animation or a file of several pages the first is read. EXIF orientation is applied and
    the tag reset; CMYK is converted to sRGB through its profile; palettes become RGB (and alpha),
    one-bit pictures 8-bit grey; premultiplied alpha is divided out.

    Args:
        data: The whole file; its type is told from its first bytes.
        limits: Most bytes and pixels to accept; None: the defaults of `Limits`.

    Raises:
        ImageError: The bytes are empty, truncated, damaged, no PNG, JPEG, WebP or TIFF, or hold
            samples that are neither 8- nor 16-bit grey, RGB or CMYK.
        LimitError: There are too many bytes or pixels. No pixel has been decoded then.
    """
    limits = limits or Limits()
    if len(data) > limits.max_bytes:
        raise LimitError(f"The image has {len(data)} bytes; at most {limits.max_bytes} are taken.")
    kind = sniff_format(data)
    header = _open(data, kind)
    _check_header(header, kind, limits)
    levels, icc_profile = _read_levels(header, kind)
    exif = read_exif_of_tiff(data) if kind == "tiff" else _blob(header, "exif-data")
    xmp = _blob(header, "xmp-data")
    return Image.from_levels(
        levels,
        icc_profile=icc_profile,
        exif=exif and upright_exif(exif),
        xmp=xmp and upright_xmp(xmp),
        dpi=_dpi(header),
        format=kind,
    )


def read_file(path: Path, most: int = -1) -> bytes:
    """The bytes of an encoded picture's file.

    Args:
        path: The file.
        most: Read no more bytes than this; -1: all.

    Raises:
        ImageError: It is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from error


def _open(data: bytes, kind: str) -> Any:
    """The picture with its header read; pixels follow when asked for."""
    vips = libvips()
    loader = getattr(vips.Image, f"{kind}load_buffer")
    try:
        return loader(data, access="sequential", fail_on=_FAIL_ON[kind])
    except vips.Error as error:
        raise ImageError(f"The header of this {kind} is truncated or damaged.") from error


def _check_header(header: Any, kind: str, limits: Limits) -> None:
    pixels = header.width * header.height
    if pixels > limits.max_pixels:
        raise LimitError(
            f"The image has {header.width}×{header.height} = {pixels} pixels; "
            f"at most {limits.max_pixels} are taken. Scale it down, cut it, or raise the limit."
        )
    colours = header.bands - header.hasalpha()
    if _CHANNELS.get(header.interpretation) != colours or header.format not in ("uchar", "ushort"):
        raise ImageError(
            f"This {kind} holds {header.bands} channels of {header.format} samples in colour space "
            f"{header.interpretation}; convert it to grey, RGB or CMYK of 8 or 16 bits."
        )


def _read_levels(header: Any, kind: str) -> tuple[npt.NDArray[Any], bytes | None]:
    """Decode, convert CMYK, turn upright: H×W×1…4 integers, and the profile they are in."""
    vips = libvips()
    picture = header
    depth = 16 if header.format == "ushort" else 8
    try:
        if header.interpretation == "cmyk":
            # The built-in CMYK profile stands in only where the file brings none.
            picture = picture.icc_transform(
                "srgb",
                embedded=True,
                input_profile="cmyk",
                black_point_compensation=True,
                depth=depth,
            )
        if header.get_typeof("orientation") and header.get("orientation") != 1:
            # Rotation reads out of order, the decoders do not.
            picture = picture.copy_memory().autorot()
        memory = picture.write_to_memory()
    except vips.Error as error:
        if "not configured" in str(error):
            raise ImageError(
                f"This {kind} uses a compression that cannot be read; save it with Deflate or LZW."
            ) from error
        raise ImageError(f"The pixel data of this {kind} is truncated or damaged.") from error
    shape = picture.height, picture.width, picture.bands
    levels = np.frombuffer(memory, np.uint16 if depth == 16 else np.uint8).reshape(shape)
    return levels, _blob(picture, "icc-profile-data")


def _dpi(header: Any) -> tuple[float, float] | None:
    # Where a file says nothing, libvips reports one pixel per millimetre or 72 per inch.
    if header.xres == 1 or abs(header.xres * MM_PER_INCH - DEFAULT_DPI) < 0.1:
        return None
    return header.xres * MM_PER_INCH, header.yres * MM_PER_INCH


def _blob(picture: Any, field: str) -> bytes | None:
    return bytes(picture.get(field)) if picture.get_typeof(field) else None
