"""What comes back from a restoration: progress on the way, then the picture with its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.image import Image, encode
from vlmir.options import RestoreOptions

__all__ = ["Inspection", "Progress", "Report", "Restoration"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """One network evaluation done."""

    step: int
    """Evaluations so far, 1…steps."""
    steps: int
    """Evaluations in all."""
    preview: npt.NDArray[np.float32] | None
    """The clean picture as seen now, H×W×3, 0…1, where previews were asked for."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a picture was restored."""

    caption: str
    """The caption that guided; empty if none."""
    degradations: dict[str, float]
    """Probability of each label."""
    degradation: str
    """The label acted upon."""
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

    caption: str
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

    def encode(self) -> bytes:
        """The picture as a file, in the format and quality of the options.

        Raises:
            OptionError: The format is unknown or cannot hold the picture.
        """
        options = self.options
        return encode(
            self.image, format=options.format, quality=options.quality, lossless=options.lossless
        )

    def save(self, path: str | Path) -> None:
        """Write :meth:`encode`'s bytes to ``path``."""
        Path(path).write_bytes(self.encode())
