"""Which files a command reads and writes, settled before anything is computed; atomic writing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmir.errors import OptionError
from vlmir.formats import SUFFIXES, format_of_suffix

__all__ = ["Job", "find_images", "plan_jobs", "write_atomically"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to read and the one to write."""

    source: Path
    target: Path
    format: str
    """Format of ``target``, which its suffix says too."""


def find_images(
    inputs: Sequence[Path], *, leave_out: Path | None = None
) -> list[tuple[Path, Path]]:
    """The image files named, or lying in the folders named.

    A file that is named is taken whatever its suffix; of a folder's files those are taken that
    have a suffix of `SUFFIXES` and are not hidden.

    Args:
        inputs: Files and folders.
        leave_out: A folder that is not searched: the output, which may lie inside an input.

    Returns:
        Pairs of a file and its path relative to the folder it was found in (the bare name of a
        named file), in the order of ``inputs``, sorted by name within a folder.

    Raises:
        OptionError: An input does not exist, or a folder has no image.
    """
    found: list[tuple[Path, Path]] = []
    for path in inputs:
        if path.is_dir():
            inside = [(file, file.relative_to(path)) for file in _walk(path, leave_out)]
            if not inside:
                raise OptionError(f"No image in the folder {path} ({', '.join(SUFFIXES)}).")
            found += inside
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise OptionError(f"There is no file or folder {path}.")
    return found


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    barred = leave_out.resolve() if leave_out else None
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (Path(root) / name).resolve() != barred
        )
        for name in sorted(names):
            if not name.startswith(".") and format_of_suffix(Path(name)):
                yield Path(root) / name


def plan_jobs(
    inputs: Sequence[Path], output: Path, *, format: str | None = None, lossless: bool = False
) -> list[Job]:
    """Pair every input with its output.

    A single named file goes to ``output`` itself where that has an image suffix and is no folder;
    all else goes into the folder ``output``, subfolders kept.

    Args:
        inputs: Files and folders.
        output: File or folder, existing or not.
        format: One of the formats in `SUFFIXES`; None: as the suffix of the output, else
            of the input, says; PNG where that says nothing.
        lossless: Refuse outputs that lose.

    Raises:
        OptionError: An input is missing, two outputs or an input and an output are the same file,
            the format contradicts the suffix or ``lossless``, or ``output`` is a file where a
            folder is needed.
    """
    single = len(inputs) == 1 and inputs[0].is_file() and not output.is_dir()
    if single and output.suffix:
        jobs = [Job(source=inputs[0], target=output, format=_format_of(output, format))]
    elif output.exists() and not output.is_dir():
        raise OptionError(f"{output} is a file; several photos need a folder as output.")
    else:
        found = find_images(inputs, leave_out=output)
        jobs = [_job_in_folder(source, output / inner, format) for source, inner in found]
    _refuse_clashes(jobs)
    for job in jobs:
        if lossless and job.format == "jpeg":
            raise OptionError(f"{job.target} cannot be lossless; add --format png, webp or tiff.")
    return jobs


def _format_of(output: Path, format: str | None) -> str:
    """The format of a named output file."""
    own = format_of_suffix(output)
    if own is None:
        raise OptionError(
            f"Cannot write {output}: {output.suffix} is none of {', '.join(SUFFIXES)}. "
            "Create it first if a folder is meant."
        )
    if format not in (None, own):
        raise OptionError(f"--format {format} contradicts the name {output}; change one of them.")
    return own


def _job_in_folder(source: Path, target: Path, format: str | None) -> Job:
    """A job whose target keeps its suffix where that says the format wanted."""
    own = format_of_suffix(target)
    kind = format or own or "png"
    if own != kind:
        # Only an image suffix is replaced: `IMG.2024` becomes `IMG.2024.png`.
        stem = target.stem if own else target.name
        suffix = next(suffix for suffix, name in SUFFIXES.items() if name == kind)
        target = target.with_name(stem + suffix)
    return Job(source=source, target=target, format=kind)


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise OptionError(f"{job.target} is an input, too; choose another output.")
        if target in writers:
            raise OptionError(
                f"{writers[target]} and {job.source} would both become {job.target}; "
                "give them different outputs in two runs."
            )
        writers[target] = job.source


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either wholly there or not at all, and create its folder.

    Raises:
        OSError: The file system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # an existing output counts as done, even after a power cut
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
