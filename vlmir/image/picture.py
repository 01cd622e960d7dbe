"""`Image`: pixels with everything that must survive restoration, and the limits on what is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmir.errors import ImageError, OptionError
from vlmir.formats import FORMATS
from vlmir.image.color import to_float

__all__ = ["Image", "Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What `decode` accepts; checked before any pixel is decoded."""

    max_bytes: int = 64 * 2**20
    """Size of the encoded file, bytes."""

    max_pixels: int = 24_000_000
    """Width times height."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One upright picture.

    Raises:
        ImageError: The arrays have a wrong shape or type.
        OptionError: Bit depth or format is unknown.
    """

    pixels: npt.NDArray[np.float32]
    """H×W×3, RGB, 0…1, display-encoded in the colour space of `icc_profile` (none: sRGB)."""

    alpha: npt.NDArray[np.float32] | None = None
    """H×W, 0 (clear) … 1 (opaque), not multiplied into the pixels; None: opaque."""

    bit_depth: int = 8
    """Bits per sample of the file, 8 or 16."""

    grey: bool = False
    """The file holds one luma channel; the three channels of `pixels` were equal when read."""

    icc_profile: bytes | None = None
    """The ICC profile, as embedded."""

    exif: bytes | None = None
    """The EXIF block (a TIFF structure, without the `Exif` prefix), its orientation tag upright."""

    xmp: bytes | None = None
    """The XMP packet."""

    dpi: tuple[float, float] | None = None
    """Horizontal and vertical print resolution, pixels per inch; None: 72 or not said."""

    format: str = "png"
    """Container format of the file, one of `FORMATS`."""

    def __post_init__(self) -> None:
        """Refuse arrays and settings that no file can hold."""
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.float32:
            raise ImageError(
                f"Pixels must be a non-empty H×W×3 float32 array in 0…1, not {shape} {dtype}; "
                "Image.from_levels takes 8- and 16-bit integers."
            )
        alpha = self.alpha
        if alpha is not None and (alpha.shape != shape[:2] or alpha.dtype != np.float32):
            raise ImageError(
                f"Alpha must be {shape[:2]} float32 like the pixels, not {alpha.shape} "
                f"{alpha.dtype}."
            )
        if self.bit_depth not in (8, 16):
            raise OptionError(f"Bit depth must be 8 or 16, not {self.bit_depth}.")
        if self.format not in FORMATS:
            raise OptionError(
                f"Unknown format {self.format!r}; choose one of {', '.join(FORMATS)}."
            )

    @classmethod
    def from_levels(cls, levels: npt.NDArray[Any], **fields: Any) -> Image:
        """Picture from integer samples.

        Args:
            levels: uint8 or uint16; H×W or H×W×1 grey, ×2 grey and alpha, ×3 RGB, ×4 RGB and alpha.
            **fields: Any further field of `Image`, such as `icc_profile` or `format`.

        Raises:
            ImageError: The array has another shape or type.
        """
        if levels.ndim == 2:
            levels = levels[..., None]
        if levels.ndim != 3 or not 1 <= levels.shape[2] <= 4:
            raise ImageError(f"Samples must be H×W or H×W×1 to H×W×4, not {levels.shape}.")
        bands = levels.shape[2]
        grey = bands < 3
        colour = to_float(levels[..., :1] if grey else levels[..., :3])
        return cls(
            pixels=np.repeat(colour, 3, axis=2) if grey else colour,
            alpha=to_float(levels[..., -1]) if bands in (2, 4) else None,
            bit_depth=8 * levels.dtype.itemsize,
            grey=grey,
            **fields,
        )

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    def with_pixels(self, pixels: npt.NDArray[np.float32]) -> Image:
        """The same picture with other colours: alpha, profile, EXIF and the rest stay.

        Args:
            pixels: H×W×3 float32, 0…1, of this picture's size.

        Raises:
            ImageError: Shape or type differ.
        """
        if pixels.shape != self.pixels.shape:
            raise ImageError(f"New pixels are {pixels.shape}, the picture is {self.pixels.shape}.")
        return replace(self, pixels=pixels)
