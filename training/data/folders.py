"""The folders of ``--data``: what lies in each is seen from its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.pool import Bytes, Pool, build_pool, read_folder, read_pairs
from vlmir.degradations import LABELS
from vlmir.errors import OptionError

__all__ = ["DataFolders", "find_data"]

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"))


@dataclass(frozen=True)
class DataFolders:
    """Folders by what they hold."""

    photos: tuple[Path, ...]
    """Clean photos, degraded here."""
    pairs: tuple[Path, ...]
    """Real pairs in the reference layout, ``<label>/{LQ,GT}``."""
    captioned: tuple[Path, ...]
    """Captioned photos: ``captions.json``, ``split.json``, ``images/``."""

    def one_captioned(self) -> Path:
        """The folder of captioned photos.

        Raises:
            OptionError: There is none, or more than one.
        """
        if len(self.captioned) != 1:
            raise OptionError(
                f"Name one folder with captions.json, split.json and images/ in --data, not {len(self.captioned)}."
            )
        return self.captioned[0]

    def pool(self, folder: Path) -> Pool:
        """The pool of degraded pictures in ``folder``, built from photos and pairs if it is not there.

        Raises:
            OptionError: There is no folder of photos.
            ValueError: The pool there was made of other pictures.
        """
        if not self.photos:
            raise OptionError("Name a folder of clean photos in --data.")
        photos: list[Bytes] = [photo for part in self.photos for photo in read_folder(part)]
        return build_pool(
            folder, photos, [pair for part in self.pairs for pair in read_pairs(part)]
        )


def find_data(folders: Sequence[Path]) -> DataFolders:
    """Sort folders by their layout.

    Only a folder's own layout counts, not that of folders in it: a benchmark lying beside is not trained on by mistake.

    Raises:
        OptionError: A folder is missing, its layout is none that is known, or pairs are of an unknown label.
    """
    found: dict[str, list[Path]] = {"photos": [], "pairs": [], "captioned": []}
    for folder in folders:
        if not folder.is_dir():
            raise OptionError(f"{folder} is no folder.")
        found[_kind(folder)].append(folder)
    for folder in found["pairs"]:
        unknown = sorted({f.name for f in folder.iterdir() if f.is_dir()} - set(LABELS))
        if unknown:
            raise OptionError(
                f"{folder} holds pairs of {', '.join(unknown)}; labels are {', '.join(LABELS)}."
            )
    return DataFolders(**{kind: tuple(paths) for kind, paths in found.items()})


def _kind(folder: Path) -> str:
    if (folder / "captions.json").is_file():
        return "captioned"
    children = list(folder.iterdir())
    if any(child.suffix.lower() in PICTURES for child in children):
        return "photos"
    sides = {"lq", "gt"}
    if any(c.is_dir() and sides <= {f.name.lower() for f in c.iterdir()} for c in children):
        return "pairs"
    raise OptionError(
        f"{folder} holds neither pictures, nor <label>/{{LQ,GT}}, nor captions.json; see --help."
    )
