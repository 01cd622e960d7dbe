"""Names in the registry, where training and serving meet: its models, aliases and tags.

A version of the sampler names in its tags the versions of the parts that it was trained with; so **the alias of the
sampler alone says what is served**.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from vlmir.bundle import PARTS

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "DIGEST",
    "MODELS",
    "ONNX",
    "ONNX_DIGEST",
    "PREVIOUS",
    "RELEASE",
    "SAMPLER",
    "VERSIONS",
    "digest_of_onnx",
]

MODELS: Mapping[str, str] = {part: f"vlmir-{part}" for part in PARTS}
"""Part → its registered model."""

SAMPLER = MODELS["sampler"]
"""The registered model whose alias counts."""

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
"""Registered last; served; served before that."""

DIGEST, RELEASE = "digest", "release"
"""Tags of every version: sha256 of the part, and the name of the bundle it came in."""

VERSIONS: Mapping[str, str] = {part: f"{part}_version" for part in PARTS if part != "sampler"}
"""Part → the tag by which the sampler's version names that part's version."""

ONNX = "onnx"
"""Folder of a version of the embedder that holds its graphs, ``clip_image.onnx`` and ``clip_text.onnx``."""

ONNX_DIGEST = "onnx_digest"
"""Tag of a version of the embedder: :func:`digest_of_onnx` of that folder. The oldest versions lack it."""


def digest_of_onnx(folder: Path) -> str:
    """sha256 over names and contents of the ONNX files in a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.onnx")):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(hashlib.sha256(path.name.encode()).digest() + content)
    return digest.hexdigest()
