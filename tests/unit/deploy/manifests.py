"""The overlays, rendered once in a session, for tests that look at them or break them."""

from __future__ import annotations

import copy
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests.render import KUSTOMIZATIONS, Manifest, parse, render, render_text

__all__ = ["CRD", "SYSTEMS", "container", "find", "needs_kubectl", "rendered", "variant"]

SYSTEMS = ("cpu", "gpu", "dev")

CRD = Path(__file__).parents[4] / "shared" / "schemas" / "ray.io_rayservices.v1.7.0.yaml"

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


def rendered(environment: str) -> list[Manifest]:
    """The objects of an overlay; they may be changed."""
    return copy.deepcopy(_rendered(environment))


@functools.cache
def _rendered(environment: str) -> list[Manifest]:
    return render(environment)


def variant(folder: Path, *components: str) -> list[Manifest]:
    """The base with some components."""
    folder.mkdir(parents=True, exist_ok=True)
    here = os.path.relpath(KUSTOMIZATIONS.resolve(), folder.resolve())
    lines = [f"  - {here}/components/{name}" for name in components]
    text = [f"resources:\n  - {here}/base", *(["components:", *lines] if lines else [])]
    (folder / "kustomization.yaml").write_text("\n".join(text))
    return parse(render_text(folder))


def find(objects: list[Manifest], kind: str, name: str) -> Any:
    """The object of a kind whose name begins so: names of ConfigMaps end with a digest."""
    found = [
        one for one in objects if one["kind"] == kind and one["metadata"]["name"].startswith(name)
    ]
    return min(found, key=lambda one: len(one["metadata"]["name"]))


def container(objects: list[Manifest], name: str, kind: str = "Deployment") -> Any:
    """The main container of a workload."""
    return find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]
