"""Overlapping windows over a picture, and their feathered partition of unity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import InputError, OptionError

__all__ = ["TilePlan", "Window", "plan_tiles"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """One rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an H×W array; `array[..., *window.slices]` for C×H×W."""
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)


@dataclass(frozen=True, kw_only=True, eq=False)
class TilePlan:
    """Windows that cover a picture, row by row, and weights that sum to 1 at every pixel.

    A weight is the product of one profile over the rows and one over the columns, so only these
    few short vectors are kept, however big the picture.
    """

    height: int
    width: int
    windows: tuple[Window, ...]
    """Row-major; all of one size, but that the last of a row or column may be shorter by less than ``align``."""

    row_profiles: tuple[npt.NDArray[np.float64], ...]
    """For each row of windows its weight along the height, float64."""

    column_profiles: tuple[npt.NDArray[np.float64], ...]
    """For each column of windows its weight along the width, float64."""

    def weight(self, index: int) -> npt.NDArray[np.float32]:
        """Weight of one window: h×w, above 0 and at most 1."""
        row, column = divmod(index, len(self.column_profiles))
        outer = np.outer(self.row_profiles[row], self.column_profiles[column])
        return outer.astype(np.float32)

    def blend(self, patches: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Weighted sum of one patch per window.

        Args:
            patches: In the order of `windows`, each C×h×w; a generator keeps memory low.

        Returns:
            C×H×W float32.

        Raises:
            InputError: There are too few or too many patches, or one has a wrong shape.
        """
        canvas: npt.NDArray[np.float32] | None = None
        count = 0
        for patch in patches:
            if canvas is None:
                canvas = np.zeros((len(patch), self.height, self.width), dtype=np.float32)
            self.add(canvas, count, patch)
            count += 1
        if canvas is None or count < len(self.windows):
            raise InputError(f"There are {count} patches for {len(self.windows)} windows.")
        return canvas

    def add(self, canvas: npt.NDArray[np.float32], index: int, patch: npt.NDArray[Any]) -> None:
        """Add one weighted patch to a C×H×W canvas that began as zeros.

        Args:
            canvas: C×H×W float32, changed in place.
            index: Number of the patch's window.
            patch: C×h×w.

        Raises:
            InputError: There is no such window, or the patch has a wrong shape.
        """
        if index >= len(self.windows):
            raise InputError(f"There are more patches than the {len(self.windows)} windows.")
        window = self.windows[index]
        expected = (len(canvas), window.height, window.width)
        if patch.shape != expected:
            raise InputError(f"Patch {index} must be {expected} (C×h×w), not {patch.shape}.")
        canvas[:, *window.slices] += patch * self.weight(index)


def plan_tiles(height: int, width: int, *, tile: int, overlap: int, align: int = 1) -> TilePlan:
    """Cover a picture with as few windows as do, each no larger than it must be.

    Windows are spread evenly: the first and last touch the borders, and neighbours share at least `overlap` pixels.
    Along each side they are as long as covering it takes, so a picture a little longer than a window costs little more
    than its own pixels. Where windows meet, weights cross-fade as raised cosines.

    Args:
        height: Rows of the picture, at least 1.
        width: Columns of the picture, at least 1.
        tile: Most rows and columns of a window, pixels, at least 1.
        overlap: Least number of pixels that neighbours share, 0 … tile - align.
        align: Windows start at multiples of this many pixels and are as long, so that a network that halves its
            resolution sees the same grid in each; `tile` is rounded down to such a multiple, `overlap` up.

    Raises:
        OptionError: An argument is out of range.
    """
    if height < 1 or width < 1:
        raise OptionError(f"A picture of {height}×{width} cannot be tiled.")
    if align < 1 or overlap < 0 or -(-overlap // align) >= tile // align:
        raise OptionError(
            f"Tile and align must be at least 1 and overlap from 0 to tile - align, in multiples of align, not {tile}, "
            f"{align} and {overlap}."
        )
    rows = _spans(height, tile, overlap, align)
    columns = _spans(width, tile, overlap, align)
    return TilePlan(
        height=height,
        width=width,
        windows=tuple(
            Window(top=row.start, left=column.start, height=len(row), width=len(column))
            for row in rows
            for column in columns
        ),
        row_profiles=_profiles(rows, height),
        column_profiles=_profiles(columns, width),
    )


def _spans(size: int, tile: int, overlap: int, align: int) -> list[range]:
    """The windows along one axis."""
    if size <= tile:
        return [range(size)]
    # All in multiples of align: the side, what neighbours share, and the longest window.
    side, shared, most = -(-size // align), -(-overlap // align), tile // align
    count = -(-(side - shared) // (most - shared))
    length = -(-(side + (count - 1) * shared) // count)
    starts = [align * (step * (side - length) // (count - 1)) for step in range(count)]
    return [range(start, min(start + align * length, size)) for start in starts]


def _profiles(spans: list[range], size: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Weights along one axis, one profile per span; overlaid they sum to 1."""
    profiles = []
    for index, span in enumerate(spans):
        profile = np.ones(len(span))
        if index > 0:
            shared = spans[index - 1].stop - span.start
            profile[:shared] *= _rise(shared)
        if index + 1 < len(spans):
            shared = span.stop - spans[index + 1].start
            profile[len(span) - shared :] *= _rise(shared)[::-1]
        profiles.append(profile)
    # With more than two windows over a pixel the cross-fades alone do not sum to 1.
    total = np.zeros(size)
    for span, profile in zip(spans, profiles, strict=True):
        total[span.start : span.stop] += profile
    return tuple(
        profile / total[span.start : span.stop]
        for span, profile in zip(spans, profiles, strict=True)
    )


def _rise(length: int) -> npt.NDArray[np.float64]:
    """Raised cosine from above 0 to below 1; with its mirror image it sums to 1."""
    phase: npt.NDArray[np.float64] = (np.arange(length) + 0.5) / max(length, 1)
    return np.sin(0.5 * np.pi * phase) ** 2
