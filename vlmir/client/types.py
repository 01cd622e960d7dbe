"""What the client hands out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmir.errors import OptionError
from vlmir.formats import format_of_suffix
from vlmir.image.sniff import sniff_format
from vlmir.report import Report

__all__ = ["ClientProgress", "ClientRestoration", "ServerInfo"]


@dataclass(frozen=True, kw_only=True)
class ClientProgress:
    """How far a restoration has come."""

    step: int
    """Whole steps done, 0 to `steps`."""

    steps: int
    """Steps in all."""

    share: float
    """Share of the computation that is done, above 0, at most 1."""

    preview: bytes | None
    """A small JPEG of the picture so far, after a whole step, if asked for."""


@dataclass(frozen=True, kw_only=True)
class ClientRestoration:
    """A restored picture, still encoded, and how it came about."""

    image_bytes: bytes
    """The file as the server encoded it."""

    report: Report
    """The report, as the library gives it."""

    uri: str | None = None
    """Where the server keeps the file, ``s3://bucket/key``, which another request may name; None if it does not."""

    link: str | None = None
    """A URL by which whoever has it can read that file for a limited time; None if the server keeps none."""

    def save(self, path: str | Path) -> None:
        """Write the file as it came.

        Raises:
            OptionError: The suffix of ``path`` says another format than the file has; nothing is written.
        """
        path, kind = Path(path), sniff_format(self.image_bytes)
        if format_of_suffix(path) != kind:
            raise OptionError(
                f"The server sent {kind}, which {path} would not say; give the name a suffix of {kind}, or ask for "
                "another format with RestoreOptions(format=…)."
            )
        path.write_bytes(self.image_bytes)


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says about itself."""

    release: str
    """Release of the weights."""

    digests: dict[str, str]
    """SHA-256 of each part of the weights."""

    device: str
    """Where it computes."""

    version: str
    """Version of its code."""

    max_image_bytes: int
    """Largest picture file, bytes."""

    max_image_pixels: int
    """Largest picture, width times height."""

    queue_depth: int
    """Requests admitted and not finished."""

    queue_capacity: int
    """Requests admitted at most."""

    labels: tuple[str, ...]
    """Degradation labels it knows."""

    solvers: tuple[str, ...]
    """Solvers it knows."""

    takes_uploads: bool
    """Whether big pictures go to it by way of its object store."""

    refused_release: str
    """Why a newer release is not the one being served; empty if none was refused."""
