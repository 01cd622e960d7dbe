"""What comes back from a restoration: progress on the way, then the picture with its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import OptionError
from vlmir.formats import SUFFIXES, format_of_suffix
from vlmir.image import Image, encode
from vlmir.options import RestoreOptions

__all__ = ["Inspection", "Progress", "Report", "Restoration"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """How far a restoration has come: told after each window of each network evaluation."""

    step: int
    """Whole evaluations so far, 0…steps."""
    steps: int
    """Evaluations in all."""
    share: float
    """Share of the sampling that is done, above 0, at most 1."""
    preview: npt.NDArray[np.float32] | None
    """The clean picture as seen now, H×W×3, 0…1: after a whole evaluation, where previews were asked for."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a picture was restored."""

    caption: str | None
    """The caption that guided; None if none did."""
    degradations: dict[str, float]
    """Probability of each label; empty where the picture was restored without conditions."""
    degradation: str
    """The label acted upon; empty where none was recognised or named."""
    release: str
    """Name and version of the weights."""
    digests: dict[str, str]
    """Part → sha256."""
    seed: int
    solver: str
    steps: int
    """Network evaluations made; 0 where the picture was left as it is."""
    realism: float
    ensemble: bool
    """Whether mirror images were averaged at every evaluation."""
    strength: float
    """Share of the correction applied, after the clean label's share was taken off."""
    width: int
    height: int
    tiles: int
    """Windows the picture was cut into."""
    tile_size: int
    """Longer side of a window in pixels; the picture's where it was not cut."""
    milliseconds: dict[str, float]
    """Stage → wall time: decode, caption, embed, sample."""
    warnings: tuple[str, ...]
    """What was not as asked or expected."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self) | {"warnings": list(self.warnings)}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is seen in a picture before anything is done to it."""

    caption: str | None
    """What the picture shows; None where the weights bring no captioner."""
    degradations: dict[str, float]
    degradation: str
    width: int
    height: int
    milliseconds: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Restoration:
    """The restored picture and how it came about."""

    image: Image
    """The restored picture; alpha, profile, EXIF and depth are the source's."""
    report: Report
    options: RestoreOptions
    degraded: bool = False
    """Whether a stage that could not be reached was done without: a later try may give a better picture."""

    def encode(self) -> bytes:
        """The picture as a file, in the format and quality of the options.

        Raises:
            OptionError: The format is unknown or cannot hold the picture.
        """
        return self._encode(self.options.format)

    def save(self, path: str | Path) -> None:
        """Write the picture, in the format that the suffix of ``path`` says.

        Raises:
            OptionError: The suffix is of no known format or contradicts the options' format, or the format cannot
                hold the picture.
        """
        path = Path(path)
        named = format_of_suffix(path)
        if named is None:
            raise OptionError(f"Cannot tell a format from {path}; use {', '.join(SUFFIXES)}.")
        if self.options.format not in (None, named):
            raise OptionError(
                f"The options ask for {self.options.format}, the name {path} for {named}; change one of them."
            )
        path.write_bytes(self._encode(named))

    def _encode(self, format: str | None) -> bytes:
        options = self.options
        return encode(self.image, format=format, quality=options.quality, lossless=options.lossless)
