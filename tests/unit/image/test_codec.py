"""Pixels through the codec: what every format must keep."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pil

from tests.unit.image.samples import Levels, levels, pil, tiff
from vlmir.errors import ImageError, OptionError
from vlmir.image import Image, decode, encode
from vlmir.image.color import to_levels


def as_levels(image: Image) -> Levels:
    """The integer samples of a decoded picture, H×W×1…4."""
    colour = image.pixels[..., :1] if image.grey else image.pixels
    parts = [colour] if image.alpha is None else [colour, image.alpha[..., None]]
    return to_levels(np.concatenate(parts, axis=2), image.bit_depth)


samples = st.builds(
    levels,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 2**32 - 1),
)


@given(samples, st.sampled_from(["png", "tiff"]))
def test_round_trip_is_exact(array: Levels, format: str) -> None:
    image = decode(encode(Image.from_levels(array, format=format)))
    assert image.format == format
    assert image.bit_depth == 8 * array.itemsize
    assert image.grey == (array.shape[2] < 3)
    np.testing.assert_array_equal(as_levels(image), array)


@given(samples)
def test_lossless_webp_is_exact_in_8_bits(array: Levels) -> None:
    source = Image.from_levels(array)
    image = decode(encode(source, format="webp", lossless=True))
    np.testing.assert_array_equal(to_levels(image.pixels, 8), to_levels(source.pixels, 8))
    # A WebP that is opaque throughout may leave its alpha out.
    alpha = np.ones(array.shape[:2]) if image.alpha is None else image.alpha
    expected = np.ones(array.shape[:2]) if source.alpha is None else source.alpha
    np.testing.assert_array_equal(np.rint(alpha * 255), np.rint(expected * 255))


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossy_formats_come_close(format: str, dtype: type) -> None:
    ramp = np.linspace(0, np.iinfo(dtype).max, 64 * 64).reshape(64, 64).astype(dtype)
    image = Image.from_levels(np.stack([ramp, ramp.T, ramp[::-1]], axis=2))
    again = decode(encode(image, format=format))
    assert again.bit_depth == 8
    assert np.abs(again.pixels - image.pixels).mean() < 0.01


def test_lossy_webp_keeps_alpha_exactly() -> None:
    array = levels(33, 20, 4)
    again = decode(encode(Image.from_levels(array), format="webp"))
    assert again.alpha is not None
    np.testing.assert_array_equal(to_levels(again.alpha, 8), array[..., 3])


def test_quality_changes_the_size() -> None:
    image = Image.from_levels(levels(64, 64, 3))
    for format in ("jpeg", "webp"):
        sizes = [len(encode(image, format=format, quality=q)) for q in (5, 60, 95)]
        assert sizes == sorted(sizes)
        assert len(encode(image, format=format)) == sizes[-1]


def test_other_libraries_read_what_is_written() -> None:
    array = levels(9, 11, 4)
    for format in ("png", "tiff", "webp"):
        encoded = encode(Image.from_levels(array), format=format, lossless=True)
        picture = Pil.open(io.BytesIO(encoded))
        assert (picture.format or "").lower() == format
        np.testing.assert_array_equal(np.array(picture), array)
    assert Pil.open(io.BytesIO(encode(Image.from_levels(array[..., :3]), format="jpeg"))).size == (
        11,
        9,
    )


GREY, RGB, RGBA = levels(20, 30), levels(20, 30, 3), levels(20, 30, 4)
GREY16, RGB16 = levels(20, 30, dtype=np.uint16), levels(20, 30, 3, dtype=np.uint16)
PALETTE = Pil.fromarray(RGB).quantize(16)
PALETTE_RGB = np.array(PALETTE.convert("RGB"))
MASK = GREY > 128


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (pil(Pil.fromarray(GREY), "png"), GREY[..., None]),
        (pil(Pil.fromarray(GREY16), "png"), GREY16[..., None]),
        (pil(Pil.fromarray(RGBA[..., :2], "LA"), "png"), RGBA[..., :2]),
        (pil(PALETTE, "png"), PALETTE_RGB),
        (pil(Pil.fromarray(MASK), "png"), 255 * MASK[..., None]),
        (pil(PALETTE, "tiff"), PALETTE_RGB),
        (pil(Pil.fromarray(RGB), "tiff", compression="tiff_lzw"), RGB),
        (tiff(RGB16, photometric="rgb", compression="deflate", predictor=True), RGB16),
        (tiff(RGB16, photometric="rgb", tile=(16, 16), byteorder=">"), RGB16),
        (tiff(RGB16, photometric="rgb", bigtiff=True), RGB16),
        (tiff(GREY, photometric="miniswhite"), 255 - GREY[..., None]),
        (tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"), RGB),
        (tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), RGBA),
        (tiff(np.stack([RGB, 255 - RGB]), photometric="rgb"), RGB),  # two pages
        (pil(Pil.fromarray(RGBA), "webp", lossless=True, exact=True), RGBA),
        (  # two frames
            pil(
                Pil.fromarray(RGB),
                "webp",
                lossless=True,
                save_all=True,
                append_images=[Pil.fromarray(255 - RGB)],
            ),
            RGB,
        ),
    ],
)
def test_files_of_other_libraries_decode_exactly(encoded: bytes, expected: Levels) -> None:
    image = decode(encoded)
    np.testing.assert_array_equal(as_levels(image), expected)
    assert image.bit_depth == (16 if expected.dtype == np.uint16 else 8)


def test_palette_with_transparency() -> None:
    opacity = bytes(range(0, 256, 17))
    image = decode(pil(PALETTE, "png", transparency=opacity))
    assert image.alpha is not None
    expected = np.frombuffer(opacity, np.uint8)[np.array(PALETTE)]
    np.testing.assert_array_equal(to_levels(image.alpha, 8), expected)
    np.testing.assert_array_equal(to_levels(image.pixels, 8), PALETTE_RGB)


def test_colour_key_transparency() -> None:
    key = tuple(int(value) for value in RGB[3, 4])
    image = decode(pil(Pil.fromarray(RGB), "png", transparency=key))
    assert image.alpha is not None
    np.testing.assert_array_equal(image.alpha == 0, np.equal(RGB, RGB[3, 4]).all(axis=2))


def test_premultiplied_alpha_is_divided_out() -> None:
    stored = np.full((4, 4, 4), [50, 25, 0, 100], np.uint8)
    image = decode(tiff(stored, photometric="rgb", extrasamples=["assocalpha"]))
    expected = np.array([127, 63, 0]) / 255
    np.testing.assert_allclose(image.pixels[0, 0], expected, atol=1.01 / 255)


@pytest.mark.parametrize("format", ["jpeg", "tiff"])
def test_cmyk_becomes_srgb(format: str) -> None:
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:] = [0, 255, 255, 0]
    image = decode(pil(Pil.fromarray(inks, "CMYK"), format))
    assert image.icc_profile is not None
    paper, red = image.pixels[8, 4], image.pixels[8, 28]
    assert paper.min() > 0.95
    assert red[0] > 0.7 and red[1:].max() < 0.35


def test_new_colours_leave_alpha_alone() -> None:
    array = levels(12, 13, 4, dtype=np.uint16)
    image = decode(encode(Image.from_levels(array)))
    again = decode(encode(image.with_pixels(1 - image.pixels)))
    assert again.alpha is not None
    np.testing.assert_array_equal(to_levels(again.alpha, 16), array[..., 3])
    np.testing.assert_array_equal(to_levels(again.pixels, 16), 65535 - array[..., :3])


def test_grey_stays_grey_under_coloured_pixels() -> None:
    image = Image.from_levels(GREY).with_pixels(levels(20, 30, 3).astype(np.float32) / 255)
    assert decode(encode(image)).grey


def test_values_outside_the_range_are_clipped() -> None:
    pixels = np.array([[[-0.5, 0.5, 1.5]]], np.float32)
    assert as_levels(decode(encode(Image(pixels=pixels)))).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_no_picture_is_written_from_non_finite_pixels(value: float, format: str) -> None:
    pixels = np.full((5, 5, 3), 0.5, np.float32)
    pixels[2, 3, 1] = value
    with pytest.raises(ImageError, match="NaN or infinite"):
        encode(Image(pixels=pixels), format=format)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gif"}, "Unknown format 'gif'"),
        ({"quality": 0}, "Quality"),
        ({"quality": 101}, "Quality"),
        ({"format": "jpeg"}, "transparency"),
        ({"format": "jpeg", "lossless": True}, "never lossless"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    image = Image.from_levels(RGBA)
    with pytest.raises(OptionError, match=message):
        encode(image, **options)  # type: ignore[arg-type]


def test_threads_do_not_disturb_each_other() -> None:
    arrays = [levels(40, 30 + i, 3, seed=i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        decoded = pool.map(lambda array: decode(encode(Image.from_levels(array))), arrays)
        for image, array in zip(decoded, arrays, strict=True):
            np.testing.assert_array_equal(as_levels(image), array)


def test_import_is_light() -> None:
    code = "import sys, vlmir.image; print({'pyvips', 'PIL', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_too_long_a_side_is_refused() -> None:
    image = Image.from_levels(np.zeros((1, 16_384), np.uint8))
    with pytest.raises(OptionError, match="16383"):
        encode(image, format="webp")
    assert decode(encode(image, format="jpeg")).width == 16_384
