"""The images' packages: what each holds, and how big that is: ``python -m deploy.images``.

No image has been built where this was written. What is measured are the files of the versions of constraints.txt as
pip has installed them in this environment, without the base image. PyTorch's wheel without CUDA is not among them: for
its size stand those files of the other wheel that have no ``cuda`` in their names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["REQUIREMENTS", "closure", "main", "missing", "requirements", "size", "table"]

DOCKER = Path(__file__).resolve().parent / "docker"
REQUIREMENTS = DOCKER / "requirements"

_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
"""What PyTorch's wheels without CUDA do not bring."""

_MIB = 2**20


def requirements(name: str, variant: str = "cpu", folder: Path = REQUIREMENTS) -> list[Requirement]:
    """What an image's files name, in order, with the files that they include.

    Args:
        name: The image's.
        variant: cpu or cuda.
        folder: Of the files.
    """
    found = list(_read(folder / f"{name}.txt"))
    special = folder / f"{name}-{variant}.txt"
    return [*found, *_read(special)] if special.exists() else found


def _read(file: Path) -> Iterator[Requirement]:
    for line in file.read_text("utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from _read(file.parent / text[3:])
        elif text:
            yield Requirement(text)


def closure(wanted: list[Requirement]) -> dict[str, metadata.Distribution | None]:
    """All packages that come with some, by canonical name; None: it is not installed here.

    Args:
        wanted: What is asked for.
    """
    found: dict[str, metadata.Distribution | None] = {}
    waiting = [(each, "") for each in wanted]
    done = set[tuple[str, str]]()
    while waiting:
        requirement, asked = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in done:
                continue
            done.add((name, extra))
            found[name] = _distribution(name)
            needed = (distribution := found[name]) and distribution.requires
            waiting += [(Requirement(text), extra) for text in needed or ()]
    return found


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def size(distribution: metadata.Distribution, *, without: str = "") -> int:
    """Bytes of a package's files.

    Args:
        distribution: The package.
        without: Files with this in their names do not count; empty: all do.
    """
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
    return sum(
        path.stat().st_size
        for path in paths
        if path.is_file() and not (without and without in path.name)
    )


def table() -> str:
    """Each image's packages and their MiB, without CUDA and with it; as Markdown."""
    lines = ["| image | packages | MiB | MiB with CUDA |", "|---|---|---|---|"]
    for name in _names():
        cpu, cuda = _measured(name, "cpu"), "–"
        if "ARG VARIANT" in (DOCKER / f"{name}.Dockerfile").read_text("utf-8"):
            cuda = f"{_measured(name, 'cuda').mib:,}"
        lines.append(f"| {name} | {cpu.packages} | {cpu.mib:,} | {cuda} |")
    return "\n".join(lines)


def missing() -> list[str]:
    """Packages of images that are not installed here, so not counted."""
    found = (_measured(name, variant) for name in _names() for variant in ("cpu", "cuda"))
    return sorted({package for measured in found for package in measured.missing})


def _names() -> list[str]:
    names = (file.name.partition(".")[0] for file in sorted(DOCKER.glob("*.Dockerfile")))
    return [name for name in names if name != "base"]


def main() -> None:
    """Print the table of OPERATIONS.md, and what it could not count."""
    print(table())
    print(f"not installed here, so not counted: {', '.join(missing()) or '-'}", file=sys.stderr)


class _Measured(NamedTuple):
    packages: int
    mib: int
    missing: list[str]


def _measured(name: str, variant: str) -> _Measured:
    found = closure(requirements(name, variant))
    if variant == "cpu":
        found = {key: one for key, one in found.items() if not _CUDA.fullmatch(key)}
    total = sum(
        size(one, without="cuda" if variant == "cpu" and key == "torch" else "")
        for key, one in found.items()
        if one is not None
    )
    missing = [key for key, one in found.items() if one is None]
    return _Measured(len(found), round(total / _MIB), missing)


if __name__ == "__main__":
    main()
