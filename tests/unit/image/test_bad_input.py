"""Every unreadable file gives one exception that names its fault."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pil

from tests.unit.image.samples import levels, pil, png_header, tiff
from vlmir.errors import ImageError, LimitError
from vlmir.image import Limits, decode

PHOTO = np.kron(levels(20, 24, 3), np.ones((8, 8, 1), np.uint8))
PICTURE = Pil.fromarray(PHOTO)
FILES = {
    "png": pil(PICTURE, "png"),
    "jpeg": pil(PICTURE, "jpeg"),
    "jpeg progressive": pil(PICTURE, "jpeg", progressive=True),
    "webp": pil(PICTURE, "webp"),
    "webp lossless": pil(PICTURE, "webp", lossless=True),
    "tiff": pil(PICTURE, "tiff"),
    "tiff lzw": pil(PICTURE, "tiff", compression="tiff_lzw"),
    "tiff deflate": tiff(PHOTO, photometric="rgb", compression="deflate"),
    "tiff tiles": tiff(PHOTO, photometric="rgb", tile=(32, 32)),
    "tiff jpeg": pil(PICTURE, "tiff", compression="jpeg"),
    "bigtiff": tiff(PHOTO, photometric="rgb", bigtiff=True),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_files_decode(name: str) -> None:
    assert decode(FILES[name]).pixels.shape == PHOTO.shape


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_cut_files_are_refused(name: str, share: float) -> None:
    whole = FILES[name]
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode(whole[: max(20, int(share * len(whole)))])


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_damage_gives_a_picture_or_an_image_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers lie at both ends, where damage does most.
        end = data.draw(st.sampled_from([100, len(damaged)]))
        at = data.draw(st.integers(0, end - 1))
        place = data.draw(st.sampled_from([at, len(damaged) - 1 - at]))
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(ImageError, LimitError):
        decode(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty"),
        (b"Dear sir,\nplease restore.\n", "a text file"),
        ("schöne Grüße".encode(), "a text file"),
        (b"GIF89a" + bytes(30), "a GIF"),
        (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "a HEIF"),
        (b'<?xml version="1.0"?><svg />', "an SVG"),
        (bytes(range(128, 256)), "unknown binary data"),
        (bytes(100), "unknown binary data"),
    ],
)
def test_other_files_are_named(data: bytes, fault: str) -> None:
    with pytest.raises(ImageError, match=fault):
        decode(data)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (tiff(PHOTO.astype(np.float32), photometric="rgb"), "float samples"),
        (tiff(PHOTO[..., 0].astype(np.int32)), "int samples"),
        (tiff(levels(8, 8, 6), photometric="rgb", planarconfig="contig"), "6 channels"),
        (pil(PICTURE, "tiff", compression="zstd"), "compression"),
    ],
)
def test_unsupported_pixels_are_named(data: bytes, fault: str) -> None:
    with pytest.raises(ImageError, match=fault):
        decode(data)


def test_bombs_are_refused_by_their_header() -> None:
    with pytest.raises(LimitError, match="40000×40000"):
        decode(png_header(40_000, 40_000))


def test_limits_are_exact() -> None:
    data = FILES["png"]
    pixels = PHOTO.shape[0] * PHOTO.shape[1]
    decode(data, Limits(max_bytes=len(data), max_pixels=pixels))
    with pytest.raises(LimitError, match="bytes"):
        decode(data, Limits(max_bytes=len(data) - 1))
    with pytest.raises(LimitError, match="pixels"):
        decode(data, Limits(max_pixels=pixels - 1))


@pytest.mark.parametrize("name", FILES)
def test_limits_hold_for_every_format(name: str) -> None:
    with pytest.raises(LimitError, match="pixels"):
        decode(FILES[name], Limits(max_pixels=100))
