from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmir.errors import InputError, OptionError
from vlmir.image import TilePlan, plan_tiles


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, int, int]:
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    tile = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, tile - 1))
    if overlap > tile // 2 and (tile - overlap) < 4:
        overlap = tile // 2  # thousands of windows prove no more
    return plan_tiles(height, width, tile=tile, overlap=overlap), tile, overlap


def axes(plan: TilePlan) -> list[tuple[int, list[int], int]]:
    """The side of the picture, where windows start along it, and how long the first is; down, then across."""
    first = plan.windows[0]
    return [
        (plan.height, sorted({window.top for window in plan.windows}), first.height),
        (plan.width, sorted({window.left for window in plan.windows}), first.width),
    ]


@given(plans())
def test_weights_sum_to_one_everywhere(drawn: tuple[TilePlan, int, int]) -> None:
    plan, _, _ = drawn
    total = np.zeros((plan.height, plan.width), np.float32)
    for index, window in enumerate(plan.windows):
        weight = plan.weight(index)
        assert weight.dtype == np.float32
        assert weight.shape == (window.height, window.width)
        assert weight.min() > 0 and weight.max() <= 1
        total[window.slices] += weight
    assert np.abs(total - 1).max() < 1e-6


@given(plans())
def test_windows_fit_and_overlap(drawn: tuple[TilePlan, int, int]) -> None:
    plan, tile, overlap = drawn
    first, last = plan.windows[0], plan.windows[-1]
    assert (first.top, first.left) == (0, 0)
    assert (last.top + last.height, last.left + last.width) == (plan.height, plan.width)
    for window in plan.windows:
        assert (window.height, window.width) == (first.height, first.width)
        assert max(window.height, window.width) <= tile
    for _, starts, length in axes(plan):
        assert all(b - a <= length - overlap for a, b in pairwise(starts))
    assert len(set(plan.windows)) == len(plan.windows)


@given(plans())
def test_no_fewer_and_no_shorter_windows_would_do(drawn: tuple[TilePlan, int, int]) -> None:
    plan, tile, overlap = drawn
    for size, starts, length in axes(plan):
        count = len(starts)
        reach = count * (length - 1) - (count - 1) * overlap
        assert reach < size, "a pixel less would do"
        if count > 1:
            assert (count - 1) * tile - (count - 2) * overlap < size, "a window less would do"


@pytest.mark.parametrize(
    ("size", "windows", "longest"), [(512, 1, 512), (620, 2, 384), (700, 2, 416), (4096, 10, 512)]
)
def test_a_picture_a_little_over_a_tile_costs_little_more_than_its_pixels(
    size: int, windows: int, longest: int
) -> None:
    plan = plan_tiles(size, 1, tile=512, overlap=96, align=32)
    assert len(plan.windows) == windows
    assert max(window.height for window in plan.windows) == longest
    assert sum(window.height for window in plan.windows) <= 1.25 * size


@given(plans(), st.integers(0, 2**32 - 1))
def test_blending_cut_patches_gives_the_picture_back(
    drawn: tuple[TilePlan, int, int], seed: int
) -> None:
    plan, _, _ = drawn
    shape = (2, plan.height, plan.width)
    picture = np.random.default_rng(seed).random(shape, dtype=np.float32)
    blended = plan.blend(picture[:, *window.slices] for window in plan.windows)
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, picture, atol=1e-6)


def test_seams_are_smooth() -> None:
    plan = plan_tiles(1, 100, tile=60, overlap=20)
    blended = plan.blend([np.zeros((1, 1, 60)), np.ones((1, 1, 60))])[0, 0]
    assert blended[0] == 0 and blended[-1] == 1
    assert np.diff(blended).min() >= 0 and np.diff(blended).max() < 0.1


def test_one_window_for_a_small_picture() -> None:
    plan = plan_tiles(5, 7, tile=64, overlap=16)
    assert len(plan.windows) == 1
    assert (plan.weight(0) == 1).all()


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(0, 5, 4, 0), (5, 5, 0, 0), (5, 5, 4, 4), (5, 5, 4, -1)],
)
def test_bad_plans_are_refused(height: int, width: int, tile: int, overlap: int) -> None:
    with pytest.raises(OptionError):
        plan_tiles(height, width, tile=tile, overlap=overlap)


def test_bad_patches_are_refused() -> None:
    plan = plan_tiles(4, 8, tile=4, overlap=0)
    good = np.zeros((3, 4, 4))
    with pytest.raises(InputError, match="more patches"):
        plan.blend([good] * 3)
    with pytest.raises(InputError, match="1 patches for 2"):
        plan.blend([good])
    with pytest.raises(InputError, match="Patch 1"):
        plan.blend([good, good[:, :1]])


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([2, 8, 16]), st.integers(0, 32))
def test_aligned_windows_start_on_the_grid_and_cover(
    height: int, width: int, align: int, overlap: int
) -> None:
    plan = plan_tiles(height, width, tile=64, overlap=overlap, align=align)
    total = np.zeros((height, width), np.float32)
    for index, window in enumerate(plan.windows):
        assert window.top % align == 0 and window.left % align == 0
        assert max(window.height, window.width) <= 64
        assert window.height > plan.windows[0].height - align
        assert window.width > plan.windows[0].width - align
        total[window.slices] += plan.weight(index)
    assert np.abs(total - 1).max() < 1e-6
    for axis in ("top", "left"):
        ordered = sorted({getattr(w, axis) for w in plan.windows})
        assert all(b - a <= 64 - overlap for a, b in pairwise(ordered))
