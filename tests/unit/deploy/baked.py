"""What the base of our images and the bake file have to be, as checks that name each fault."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import vlmir
from tests.unit.deploy.dockerfiles import DOCKER, NAMES, instructions, last, stages

__all__ = ["WITH_CUDA", "bake_faults", "base_faults"]

WITH_CUDA = {"captioner", "embedder", "sampler", "training"}
ATTESTED = ["type=provenance,mode=max", "type=sbom"]


def base_faults(text: str) -> Iterator[str]:
    """What is wrong with the base: it is fixed by its digest, and its last stage has neither tools nor root."""
    found = instructions(text)
    arguments = dict(each.rest.partition("=")[::2] for each in found if each.word == "ARG")
    image = arguments.get("PYTHON_IMAGE", "")
    if not re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+", image):
        yield f"the image is {image}"
    if arguments.get("PYTHON_DIGEST") != "":
        yield "the digest is no argument"
    builder, runtime = stages(found)
    for stage in (builder, runtime):
        if stage[0].rest.split()[0] != "${PYTHON_IMAGE}${PYTHON_DIGEST}":
            yield f"a stage is made from {stage[0].rest}"
    run = last(runtime, "RUN")
    if "pip uninstall --yes pip setuptools wheel" not in run or "ensurepip" not in run:
        yield "the last stage can install packages"
    if not any("--without-pip /venv" in each.rest for each in builder):
        yield "what is copied from the builder can install packages"
    if last(runtime, "USER") != "10001:10001":
        yield f"the user is {last(runtime, 'USER')!r}"


def bake_faults(bake: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the bake file: each image is made, named, told its variant, and attested."""
    targets, variables, groups = bake["target"], bake["variable"], bake["group"]
    wanted = {"cpu": set(NAMES), "gpu": {f"{name}-cuda" for name in WITH_CUDA}}
    if groups["default"]["targets"] != ["cpu"]:
        yield "by default it makes something else"
    if variables["VERSION"]["default"] != vlmir.__version__:
        yield f"the version is {variables['VERSION']['default']}"
    base = (DOCKER / "base.Dockerfile").read_text("utf-8")
    if f"ARG PYTHON_IMAGE={variables['PYTHON_IMAGE']['default']}\n" not in base:
        yield "the base image is another than the Dockerfile's"
    if set(targets["common"]["args"]) != {"PYTHON_IMAGE", "PYTHON_DIGEST"}:
        yield "the base cannot be fixed by its digest"
    if targets["image"].get("attest") != ATTESTED:
        yield "images come without SBOM or provenance"
    if targets["image"]["contexts"] != {"builder": "target:builder", "runtime": "target:runtime"}:
        yield "images are not made from the base"
    for group, names in wanted.items():
        if set(groups[group]["targets"]) != names:
            yield f"{group} makes {groups[group]['targets']}"
        for name in names & set(targets):
            yield from (f"{name}: {fault}" for fault in _of_target(group, name, targets[name]))


def _of_target(group: str, name: str, made: Mapping[str, Any]) -> Iterator[str]:
    image, suffix = name.removesuffix("-cuda"), "-cuda" if group == "gpu" else ""
    variant = {"VARIANT": {"cpu": "cpu", "gpu": "cuda"}[group]} if image in WITH_CUDA else {}
    right = {
        "inherits": ["image"],
        "dockerfile": f"deploy/docker/{image}.Dockerfile",
        "tags": [f"${{REGISTRY}}/{image}:${{VERSION}}{suffix}"],
        "args": variant,
    }
    yield from (
        f"{key} is {made.get(key, {})}"
        for key, value in right.items()
        if made.get(key, {}) != value
    )
