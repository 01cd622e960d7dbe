"""Render every degradation at three strengths onto one picture, to be looked at.

Run as ``python -m training.contact_sheet [PHOTO] -o OUT.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vlmir.degradations import LABELS, degrade
from vlmir.degradations.fields import Pixels

__all__ = ["contact_sheet", "main"]

_STRENGTHS = (0.0, 0.5, 1.0)
_CAPTION_HEIGHT = 18
_COLUMNS = 2  # groups of three strengths side by side


def contact_sheet(photo: Pixels, *, seed: int = 0) -> NDArray[np.uint8]:
    """All labels, each at the strengths 0, 0.5 and 1, with their names.

    Args:
        photo: H×W×3, float32, RGB, 0…1.
        seed: Chooses the drops, streaks and so on; the strengths of a label share it.

    Returns:
        The sheet, uint8 RGB 0…255, two labels to a row.
    """
    strips = [_strip(photo, label, seed) for label in LABELS]
    while len(strips) % _COLUMNS:
        strips.append(np.full_like(strips[0], 255))
    rows = [np.hstack(strips[i : i + _COLUMNS]) for i in range(0, len(strips), _COLUMNS)]
    return np.vstack(rows)


def _strip(photo: Pixels, label: str, seed: int) -> NDArray[np.uint8]:
    """One label: its pictures side by side under a caption."""
    pictures = [degrade(photo, label, seed=seed, strength=strength) for strength in _STRENGTHS]
    strip = np.rint(np.hstack(pictures) * 255.0).astype(np.uint8)
    caption = np.full((_CAPTION_HEIGHT, strip.shape[1], 3), 255, dtype=np.uint8)
    text = f"{label}: strength {', '.join(f'{strength:g}' for strength in _STRENGTHS)}"
    cv2.putText(caption, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([caption, strip])


def _read_photo(path: Path | None, width: int) -> Pixels:
    """The photo at `path`, or scikit-image's astronaut, scaled to `width` pixels."""
    if path is None:
        from skimage import data

        levels = data.astronaut()  # type: ignore[no-untyped-call]
    else:
        read = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if read is None:
            raise SystemExit(f"{path} is no picture that can be read.")
        levels = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
    size = (width, max(1, round(levels.shape[0] * width / levels.shape[1])))
    scaled = cv2.resize(levels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(scaled / np.float32(255.0), dtype=np.float32)


def main() -> None:
    """Read the command line and write the sheet."""
    parser = argparse.ArgumentParser(description="Show every degradation at three strengths.")
    parser.add_argument("photo", nargs="?", type=Path, help="default: scikit-image's astronaut")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=320, help="of each picture, pixels")
    arguments = parser.parse_args()
    sheet = contact_sheet(_read_photo(arguments.photo, arguments.width), seed=arguments.seed)
    cv2.imwrite(str(arguments.output), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
