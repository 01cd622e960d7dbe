"""ICC, EXIF, XMP, orientation and resolution through the codec."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, ImageCms, ImageOps, PngImagePlugin
from PIL import Image as Pil

from tests.unit.image.samples import (
    exif_with_thumbnail,
    grey_profile,
    levels,
    photo_exif,
    pil,
    read_tags,
)
from vlmir.image import FORMATS, Image, decode, encode
from vlmir.image.color import to_levels
from vlmir.image.metadata import add_exif_to_tiff, read_exif_of_tiff, upright_exif, upright_xmp

PICTURE = Pil.fromarray(np.kron(levels(3, 4, 3), np.ones((8, 8, 1), np.uint8)))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
TAGS = read_tags(pil(PICTURE, "jpeg", exif=photo_exif()))


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_everything_survives_between_all_formats(source: str, target: str) -> None:
    exif = photo_exif()
    options: dict[str, Any] = {"xmp": XMP}
    if source == "png":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif source == "tiff":
        options = {}
        exif[700] = XMP
    encoded = pil(PICTURE, source, exif=exif, icc_profile=PROFILE, dpi=(300, 300), **options)
    again = encode(decode(encoded), format=target)
    assert read_tags(again) == TAGS
    seen = Pil.open(io.BytesIO(again))
    assert seen.info["icc_profile"] == PROFILE
    image = decode(again)
    assert image.icc_profile == PROFILE
    assert image.xmp == upright_xmp(XMP)
    if "webp" not in (source, target):  # resolution lives in the EXIF of a WebP alone
        assert image.dpi == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    options = {"lossless": True} if format == "webp" else {}
    encoded = pil(PICTURE, format, exif=photo_exif(orientation), **options)
    image = decode(encoded)
    shown, tolerance = np.array(_as_shown(encoded)), 30 if format == "jpeg" else 0
    np.testing.assert_allclose(to_levels(image.pixels, 8), shown, atol=tolerance)
    again = encode(image, lossless=format == "webp")
    np.testing.assert_allclose(_as_shown(again), shown, atol=tolerance)
    assert read_tags(again) == TAGS


def _as_shown(encoded: bytes) -> Pil.Image:
    return ImageOps.exif_transpose(Pil.open(io.BytesIO(encoded)))


def test_exif_block_is_only_changed_in_its_orientation() -> None:
    before = photo_exif(6).tobytes()
    after = decode(pil(PICTURE, "jpeg", exif=before)).exif
    assert after is not None
    assert len(after) == len(before) - len(b"Exif\0\0")
    assert sum(a != b for a, b in zip(after, before[6:], strict=True)) == 1


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_thumbnail_of_the_old_picture_is_dropped(format: str) -> None:
    thumbnail = pil(PICTURE, "jpeg")
    image = decode(pil(PICTURE, format, exif=exif_with_thumbnail(thumbnail)))
    assert (image.height, image.width) == (32, 24)
    for target in FORMATS:
        assert thumbnail not in encode(image, format=target)


def test_grey_profile_is_kept_or_converted() -> None:
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.from_levels(array, icc_profile=grey_profile())
    for format in ("png", "jpeg", "tiff"):
        assert decode(encode(image, format=format)).icc_profile == grey_profile()
    # The same light in sRGB: gamma 1.8 turned into about 2.2 brightens the middle.
    webp = decode(encode(image, format="webp", lossless=True))
    assert webp.icc_profile not in (None, grey_profile())
    assert webp.pixels[8, 0] == pytest.approx((128 / 255) ** (1.8 / 2.2), abs=0.03)


def test_16_bit_tiff_keeps_exif_and_pixels() -> None:
    array = levels(50, 61, 4, dtype=np.uint16)
    exif = photo_exif().tobytes()
    image = Image.from_levels(array, format="tiff", exif=exif, icc_profile=PROFILE)
    again = decode(encode(image))
    np.testing.assert_array_equal(again.pixels, image.pixels)
    assert again.alpha is not None and image.alpha is not None
    np.testing.assert_array_equal(again.alpha, image.alpha)
    assert again.icc_profile == PROFILE
    assert read_tags(encode(again)) == TAGS


def test_a_picture_without_metadata_gets_none() -> None:
    for format in FORMATS:
        image = decode(pil(PICTURE, format))
        assert (image.icc_profile, image.exif, image.xmp) == (None, None, None)
        seen = Pil.open(io.BytesIO(encode(image)))
        assert decode(encode(image)).exif is None
        assert format == "tiff" or not seen.getexif()
        assert seen.info.get("dpi", (72, 72)) == pytest.approx((72, 72), abs=0.1)


@given(st.binary(min_size=1, max_size=80), st.sampled_from(["png", "jpeg", "webp"]))
def test_damaged_exif_harms_nothing(junk: bytes, format: str) -> None:
    for exif in (junk, b"II*\0\x08\0\0\0" + junk, b"MM\0*\0\0\0\x08" + junk):
        image = decode(pil(PICTURE, format, exif=b"Exif\0\0" + exif))
        for target in FORMATS:
            again = decode(encode(image, format=target, lossless=target == "webp"))
            if target != "jpeg":
                np.testing.assert_array_equal(again.pixels, image.pixels)


def test_nothing_is_added_to_a_tiff_from_junk() -> None:
    encoded = encode(Image.from_levels(levels(2, 2)), format="tiff")
    assert add_exif_to_tiff(encoded, b"junk") == encoded


def exif_with_unfit_gps() -> bytes:
    """A maker's name, and a GPS latitude reference of two numbers where letters belong."""
    entry = struct.Struct("<HHI4s")
    make = entry.pack(0x010F, 2, 4, b"Us!\0")
    place = entry.pack(0x8825, 4, 1, struct.pack("<I", 8 + 2 + 24 + 4))
    gps = struct.pack("<H", 1) + entry.pack(1, 3, 2, struct.pack("<HH", 7, 9)) + bytes(4)
    return b"II*\0" + struct.pack("<IH", 8, 2) + make + place + bytes(4) + gps


def test_a_place_that_cannot_be_written_is_left_out() -> None:
    image = Image.from_levels(levels(2, 2), format="tiff", exif=exif_with_unfit_gps())
    tags = pil_exif(encode(image, format="tiff"))
    assert tags[0x010F] == "Us!" and 0x8825 not in tags
    kept = read_exif_of_tiff(exif_with_unfit_gps())
    assert kept is not None and b"Us!" in kept


def pil_exif(encoded: bytes) -> Pil.Exif:
    return Pil.open(io.BytesIO(encoded)).getexif()


def test_long_orientation_and_both_byte_orders() -> None:
    for order, mark in (("little", b"II*\0"), ("big", b"MM\0*")):
        for kind, size in ((3, 2), (4, 4)):
            numbers = [(8, 4), (1, 2), (ExifTags.Base.Orientation, 2), (kind, 2), (1, 4), (6, size)]
            parts = [value.to_bytes(width, order) for value, width in numbers]  # type: ignore[arg-type]
            exif = mark + b"".join(parts) + bytes(8 - size)
            expected = exif.replace((6).to_bytes(size, order), (1).to_bytes(size, order))  # type: ignore[arg-type]
            assert upright_exif(exif) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"tiff:Orientation='8'", b"tiff:Orientation='1'"),
        (b"<tiff:Orientation>3</tiff:Orientation>", b"<tiff:Orientation>1</tiff:Orientation>"),
        (b"<other>3</other>", b"<other>3</other>"),
    ],
)
def test_xmp_orientation(before: bytes, after: bytes) -> None:
    assert upright_xmp(before) == after
