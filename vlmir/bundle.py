"""A bundle: a folder of weights with everything that must be known to run them.

::

    bundle.json                     format, release, preset, digests, measured metrics
    captioner/model.safetensors     BLIP
    captioner/tokenizer.json        the word pieces of captioner and embedder
    embedder/model.safetensors      CLIP, controller, LoRA updates if any, label prototypes
    sampler/model.safetensors       the U-Net (the moving average of its training)

The digests say which parts there are: a bundle may lack the captioner, if its preset lets the embedder read CLIP's own
words, which come with open_clip.

Only safetensors and JSON are read; nothing is ever unpickled. Weights may be stored in half precision and are widened
when loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlmir.config import Preset, from_dict
from vlmir.errors import BundleError, OptionError

__all__ = [
    "FORMAT",
    "PARTS",
    "REQUIRED",
    "Bundle",
    "check_free",
    "digest_of",
    "find_bundle",
    "load_bundle",
]

FORMAT = 1
"""Version of the folder layout."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "captioner": ("model.safetensors", "tokenizer.json"),
    "embedder": ("model.safetensors",),
    "sampler": ("model.safetensors",),
}
"""Part → the files of its folder, which its digest covers."""

REQUIRED = ("embedder", "sampler")
"""The parts that every bundle has."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose digests have been checked."""

    folder: Path
    release: str
    """Name and version of these weights."""
    preset: Preset
    digests: dict[str, str]
    """Part → sha256 of its files; a part that is not there is not named."""
    metrics: dict[str, Any]
    """What was measured of these weights."""

    def file(self, part: str, name: str) -> Path:
        """Path of one file of a part.

        Raises:
            BundleError: The bundle lacks the part.
        """
        if part not in self.digests:
            raise BundleError(f"The bundle in {self.folder} has no {part}.")
        return self.folder / part / name


def find_bundle(name: str | Path) -> Path:
    """The folder of a shipped bundle by name (``tiny``), or of any bundle by path.

    Raises:
        BundleError: There is none.
    """
    shipped = resources.files("vlmir").joinpath("assets", str(name))
    for folder in (Path(str(shipped)), Path(name)):
        if (folder / "bundle.json").is_file():
            return folder
    raise BundleError(f"No bundle at {str(name)!r}: give the path of a folder with a bundle.json.")


def check_free(folder: Path) -> None:
    """Refuse a place for a new bundle where something is already.

    Raises:
        OptionError: ``folder`` is a file, or a folder that is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OptionError(f"{folder} is already there; name a folder that is new or empty.")


def digest_of(folder: Path, part: str) -> str:
    """sha256 over the files of a part, in the order of ``PARTS``.

    Raises:
        BundleError: A file is missing.
    """
    digest = hashlib.sha256()
    for name in PARTS[part]:
        path = folder / part / name
        if not path.is_file():
            raise BundleError(f"The bundle lacks {part}/{name}.")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_bundle(name: str | Path, *, parts: Collection[str] | None = None) -> Bundle:
    """Open a bundle by name or path and check every digest.

    Args:
        name: Name of a shipped bundle, or the path of a folder.
        parts: Check only these and let the files of the others be missing; None: all.

    Raises:
        BundleError: It is missing, damaged, of another format, or its files are not those it names.
    """
    folder = find_bundle(name)
    try:
        data = json.loads((folder / "bundle.json").read_text("utf-8"))
        version, release, digests = data["format"], data["release"], dict(data["digests"])
        preset, metrics = data["preset"], dict(data["metrics"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / 'bundle.json'} is damaged: {error!r}.") from error
    if version != FORMAT:
        raise BundleError(f"{folder} has bundle format {version}; this version reads {FORMAT}.")
    missing, unknown = sorted({*REQUIRED} - {*digests}), sorted({*digests} - {*PARTS})
    if missing or unknown:
        raise BundleError(
            f"{folder / 'bundle.json'} is damaged: parts missing {missing}, unknown {unknown}."
        )
    for part, digest in digests.items():
        if (parts is None or part in parts) and digest_of(folder, part) != digest:
            raise BundleError(
                f"The {part} in {folder} is not the one its bundle.json names (digest mismatch)."
            )
    return Bundle(
        folder=folder,
        release=release,
        preset=from_dict(Preset, preset),
        digests=digests,
        metrics=metrics,
    )
