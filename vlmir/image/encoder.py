"""Pictures to bytes: PNG, JPEG, WebP, TIFF."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import ImageError, OptionError
from vlmir.formats import FORMATS
from vlmir.image.color import luma, to_levels
from vlmir.image.libvips import DEFAULT_DPI, MM_PER_INCH, libvips
from vlmir.image.metadata import add_exif_to_tiff
from vlmir.image.picture import Image

__all__ = ["check_encodable", "encode"]

_LONGEST_SIDE = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383, "tiff": 2**31 - 1}


def encode(
    image: Image,
    *,
    format: str | None = None,
    quality: int | None = None,
    lossless: bool = False,
) -> bytes:
    """Write a picture with its alpha, profile, EXIF, XMP and print resolution.

    PNG and TIFF keep the bit depth and every level; JPEG and WebP hold 8 bits. A grey picture is
    written as one channel of luma (as RGB in WebP, which has no grey).

    Args:
        image: The picture; pixels outside 0…1 are clipped.
        format: One of `FORMATS`; None: the picture's own.
        quality: 1…100 for JPEG and lossy WebP, default 95; of no effect elsewhere.
        lossless: Write WebP without loss. PNG and TIFF always are.

    Raises:
        OptionError: Format or quality is unknown, or the format cannot hold this picture.
        ImageError: The pixels are not finite, or the EXIF block is damaged.
    """
    check_encodable(image, format=format, quality=quality, lossless=lossless)
    kind = format or image.format
    picture = _to_vips(_to_samples(image, image.bit_depth if kind in ("png", "tiff") else 8))
    picture = _with_metadata(picture, image)
    if kind == "webp" and image.grey and image.icc_profile:
        # A profile for grey would be wrong on the three channels of WebP.
        picture = picture.icc_transform("srgb", embedded=True)
    options: dict[str, dict[str, Any]] = {
        "png": {},
        "jpeg": {"Q": quality or 95},
        # `exact` keeps the colours under clear pixels.
        "webp": {"Q": quality or 95, "lossless": lossless, "exact": lossless},
        "tiff": {"compression": "deflate", "predictor": "horizontal"},
    }
    # libvips would make up an EXIF block to hold a resolution nobody gave.
    keep = "all" if image.exif or image.dpi else "icc|xmp"
    try:
        encoded = bytes(getattr(picture, f"{kind}save_buffer")(keep=keep, **options[kind]))
    except libvips().Error as error:
        raise ImageError(
            f"The picture cannot be written as {kind}: its EXIF, XMP or colour profile is damaged."
        ) from error
    return add_exif_to_tiff(encoded, image.exif) if kind == "tiff" and image.exif else encoded


def check_encodable(
    image: Image,
    *,
    format: str | None = None,
    quality: int | None = None,
    lossless: bool = False,
) -> None:
    """Refuse what :func:`encode` would refuse, before any work is put into the picture.

    Args:
        image: The picture.
        format: See :func:`encode`.
        quality: See :func:`encode`.
        lossless: See :func:`encode`.

    Raises:
        OptionError: Format or quality is unknown, or the format cannot hold this picture.
    """
    kind = format or image.format
    if kind not in FORMATS:
        raise OptionError(f"Unknown format {kind!r}; choose one of {', '.join(FORMATS)}.")
    if quality is not None and not 1 <= quality <= 100:
        raise OptionError(f"Quality must be 1…100, not {quality}.")
    if kind == "jpeg" and lossless:
        raise OptionError("JPEG is never lossless; choose png, webp or tiff.")
    if kind == "jpeg" and image.alpha is not None:
        raise OptionError("JPEG cannot hold the picture's transparency; choose png, webp or tiff.")
    if max(image.height, image.width) > _LONGEST_SIDE[kind]:
        raise OptionError(
            f"A {kind} side has at most {_LONGEST_SIDE[kind]} pixels, the picture is "
            f"{image.width}×{image.height}; choose png or tiff."
        )


def _to_samples(image: Image, bit_depth: int) -> npt.NDArray[Any]:
    """H×W×1…4 integers, C-contiguous."""
    colour = luma(image.pixels)[..., None] if image.grey else image.pixels
    levels = to_levels(colour, bit_depth)
    if image.alpha is None:
        return levels
    return np.concatenate((levels, to_levels(image.alpha, bit_depth)[..., None]), axis=2)


def _to_vips(levels: npt.NDArray[Any]) -> Any:
    height, width, bands = levels.shape
    wide = levels.dtype == np.uint16
    grey_space, colour_space = ("grey16", "rgb16") if wide else ("b-w", "srgb")
    # The vips image borrows the array's memory and keeps the array alive.
    memory = libvips().Image.new_from_memory(
        np.ascontiguousarray(levels).data, width, height, bands, "ushort" if wide else "uchar"
    )
    return memory.copy(interpretation=grey_space if bands < 3 else colour_space)


def _with_metadata(picture: Any, image: Image) -> Any:
    x_dpi, y_dpi = image.dpi or (DEFAULT_DPI, DEFAULT_DPI)
    picture = picture.copy(xres=x_dpi / MM_PER_INCH, yres=y_dpi / MM_PER_INCH)
    blobs = {
        "icc-profile-data": image.icc_profile,
        "exif-data": image.exif,
        "xmp-data": image.xmp,
    }
    for field, blob in blobs.items():
        if blob:
            picture.set_type(libvips().GValue.blob_type, field, blob)
    return picture
