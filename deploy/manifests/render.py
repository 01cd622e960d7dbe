"""The manifests of an environment as they would be applied."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import yaml  # type: ignore[import-untyped]

from deploy.manifests.kubectl import executable
from vlmir.errors import OptionError

__all__ = [
    "ENVIRONMENTS",
    "KUSTOMIZATIONS",
    "Manifest",
    "overlay",
    "parse",
    "render",
    "render_text",
]

Manifest: TypeAlias = dict[str, Any]
"""One Kubernetes object."""

KUSTOMIZATIONS = Path(__file__).resolve().parents[1] / "k8s"
"""Folder of base, components and overlays."""

ENVIRONMENTS = ("cpu", "gpu", "dev", "training")
"""The overlays."""


def render(environment: str) -> list[Manifest]:
    """The objects of an overlay; errors are those of :func:`render_text`."""
    return parse(render_text(overlay(environment)))


def render_text(folder: Path) -> str:
    """A kustomization, rendered: YAML documents.

    Raises:
        OptionError: It cannot be rendered.
        UnavailableError: kubectl is not installed.
    """
    done = subprocess.run(
        [executable(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OptionError(f"{folder} cannot be rendered: {done.stderr.strip()}")
    return done.stdout


def parse(text: str) -> list[Manifest]:
    """YAML documents as objects."""
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def overlay(environment: str) -> Path:
    """The folder of an environment.

    Raises:
        OptionError: There is no such environment.
    """
    if environment not in ENVIRONMENTS:
        raise OptionError(f"ENV={environment} is unknown; choose {', '.join(ENVIRONMENTS)}.")
    return KUSTOMIZATIONS / "overlays" / environment
