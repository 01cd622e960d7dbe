"""Container formats and the suffixes of their files: plain data, for code that must not import an imaging library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

__all__ = ["FORMATS", "SUFFIXES", "format_of_suffix"]

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".png": "png",
        ".jpg": "jpeg",
        ".jpeg": "jpeg",
        ".webp": "webp",
        ".tif": "tiff",
        ".tiff": "tiff",
    }
)
"""Format by suffix in lower case; the first suffix of a format is the one given to new files."""

FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
"""Names of the container formats read and written."""


def format_of_suffix(path: Path) -> str | None:
    """The format that a file's name says, or None where it says none."""
    return SUFFIXES.get(path.suffix.lower())
