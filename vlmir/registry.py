"""Names in the registry, where training and serving meet: its models, aliases and tags.

A version of the sampler names in its tags the versions of the parts that it was trained with; so **the alias of the
sampler alone says what is served**.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlmir.bundle import PARTS

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "DIGEST",
    "MODELS",
    "ONNX",
    "PREVIOUS",
    "RELEASE",
    "SAMPLER",
    "VERSIONS",
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
