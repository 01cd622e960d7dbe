"""A local folder as a store: a subfolder for each bucket, a file for each object."""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from mimetypes import guess_type
from pathlib import Path
from typing import BinaryIO

from services.common.store.base import Opened, Store, StoredObject, Upload, digest_of_key, missing
from services.common.store.uri import Location
from vlmir.errors import UnavailableError

__all__ = ["FolderStore"]

_CHUNK = 1 << 20
_DAY_S = 86400.0
_SWEEP_S = 3600.0
_TRIES = 3
# What the operating system says of a file that is not there or not for us.
_MISSING = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.ENXIO,
    errno.EINVAL,
}


class FolderStore(Store):
    """Objects as files ``root/bucket/key``.

    Its links are ``file://`` URLs: good on the machines that see the folder, and without an end. It takes no uploads,
    since a client that sees the folder can put its file there, and one that does not cannot follow a link to it.

    Args:
        root: The folder; it is made where it is missing.
        bucket: Subfolder that is written.
        readable: Other subfolders that are read.
        expiry: First part of the key → days after which its files are removed.
    """

    remote = False

    def __init__(
        self, root: Path, bucket: str, readable: Collection[str], expiry: Mapping[str, int]
    ) -> None:
        super().__init__(bucket, readable)
        self._root = root.absolute()
        self._expiry = dict(expiry)
        self._next_sweep = 0.0

    def prepare(self) -> None:
        """Make the folder and remove what has expired.

        Raises:
            UnavailableError: The folder cannot be made.
        """
        try:
            (self._root / self.bucket).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _trouble("made", self._root, error) from error
        self._sweep()

    def _write(self, location: Location, data: bytes, content_type: str, sha256: str) -> None:
        path = self._path(location)
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            try:
                with _created(part) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())  # what is acknowledged outlives a power cut
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise _trouble("written", path, error) from error
        if time.monotonic() > self._next_sweep:
            self._sweep()

    @contextmanager
    def _open(self, location: Location) -> Iterator[Opened]:
        with self._file(location) as file:
            yield Opened(
                size=os.fstat(file.fileno()).st_size,
                content_type=_content_type(location),
                sha256=digest_of_key(location.key),
                chunks=iter(lambda: file.read(_CHUNK), b""),
            )

    def _stat(self, location: Location) -> StoredObject:
        with self._file(location) as file:
            size = os.fstat(file.fileno()).st_size
        return StoredObject(
            uri=str(location),
            size=size,
            content_type=_content_type(location),
            sha256=digest_of_key(location.key),
        )

    def _link(self, location: Location, expires_s: int) -> str:
        return self._path(location).as_uri()

    def _upload(self, location: Location, size: int, sha256: str, expires_s: int) -> Upload:
        raise AssertionError("a store that is not remote takes no uploads")

    def _delete(self, location: Location) -> None:
        path = self._path(location)
        try:
            self._inside(path).unlink()
        except OSError as error:
            if error.errno not in _MISSING:
                raise _trouble("removed", path, error) from error
        else:
            self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        """Remove folders in which nothing lies any more: an S3 server has none either."""
        while folder != self._root / self.bucket:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _keys(self, folder: Location) -> Iterable[str]:
        bucket, path = self._root / self.bucket, self._path(folder)
        try:
            self._inside(path)
        except OSError:
            return []
        # Hidden ones are just being written.
        found = (one for one in path.rglob("*") if not one.name.startswith(".") and one.is_file())
        return [one.relative_to(bucket).as_posix() for one in found]

    def _path(self, location: Location) -> Path:
        return self._root / location.bucket / location.key

    def _inside(self, path: Path) -> Path:
        """``path`` itself, known to lie in the folder: no part of it is a symbolic link that leads elsewhere."""
        real = path.resolve(strict=True)
        if real != self._root.resolve() / path.relative_to(self._root):
            raise OSError(errno.ELOOP, "a link")
        return real

    @contextmanager
    def _file(self, location: Location) -> Iterator[BinaryIO]:
        path = self._path(location)
        try:
            # Not blocking: opening a pipe would wait for a writer.
            number = os.open(self._inside(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _MISSING:
                raise missing(location) from error
            raise _trouble("read", path, error) from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise missing(location)
        with os.fdopen(number, "rb") as file:
            yield file

    def _sweep(self) -> None:
        """Remove expired files; others may do the same at this moment."""
        self._next_sweep = time.monotonic() + _SWEEP_S
        for folder, days in self._expiry.items():
            oldest = time.time() - days * _DAY_S
            for path in (self._root / self.bucket / folder).rglob("*"):
                try:
                    if path.is_file() and path.lstat().st_mtime < oldest:
                        path.unlink()
                except FileNotFoundError:
                    continue


def _created(path: Path) -> BinaryIO:
    """A new file; its folder is made, again if it was empty and has just been removed by another."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    return path.open("xb")


def _content_type(location: Location) -> str:
    return guess_type(location.key)[0] or "application/octet-stream"


def _trouble(what: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{path} cannot be {what} ({error.strerror}); mend the folder that VLMIR_STORE_URL names."
    )
