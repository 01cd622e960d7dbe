"""`Store`: what all kinds of store have in common, and the checks that none of them may leave out."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType

from services.common.store.uri import Location, parse_uri
from vlmir.errors import InputError, LimitError, UnavailableError

__all__ = [
    "RESULTS",
    "TENSORS",
    "UPLOADS",
    "Opened",
    "Store",
    "StoredObject",
    "Upload",
    "digest_of_key",
    "missing",
]

RESULTS = "results"
"""First part of the keys of restored pictures."""

UPLOADS = "uploads"
"""First part of the keys of pictures that clients upload."""

TENSORS = "tensors"
"""First part of the keys of arrays that travel between services."""

_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        "image/png": ".png",
        "image/jpeg": ".jpg",
        "image/webp": ".webp",
        "image/tiff": ".tiff",
        "application/octet-stream": ".bin",
    }
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY_OF_DIGEST = re.compile(r"(?:.*/)?[0-9a-f]{2}/([0-9a-f]{64})(?:\.[a-z]+)?")
_DOWNLOAD_S = 60.0


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What lies in a store."""

    uri: str
    """Its place, ``s3://bucket/key``."""

    size: int
    """Bytes."""

    content_type: str
    """Media type, such as ``image/png``."""

    sha256: str | None
    """Hexadecimal; None where whoever stored it did not say."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """How somebody without credentials can store one object: POST a form with ``fields``, then ``file``."""

    uri: str
    """Where it will lie."""

    link: str
    """Where to POST."""

    fields: dict[str, str]
    """The form's other fields; they bind size, key and digest, and are signed."""

    expires_s: int
    """Seconds for which the form is taken."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An object about to be read."""

    size: int | None
    """Bytes, where known before reading."""

    content_type: str

    sha256: str | None
    """What the store says the digest is."""

    chunks: Iterator[bytes]
    """The content, piece by piece."""


class Store(ABC):
    """Objects by ``s3://bucket/key``. Methods block; any number of threads may call them.

    Objects are named by their content, so the same bytes are stored once, or by whoever puts them. One bucket is
    written, and only that and the buckets configured as readable are read: of any other, not even whether something is
    there is told.

    Args:
        bucket: The bucket that is written.
        readable: Other buckets that are read.
    """

    remote: bool
    """Whether clients on other machines can follow its links and upload to it."""

    def __init__(self, bucket: str, readable: Collection[str]) -> None:
        self.bucket = bucket
        self._readable = frozenset({bucket, *readable})

    @abstractmethod
    def prepare(self) -> None:
        """Start up: make sure that the store answers, that its bucket is there, and that old objects expire.

        Raises:
            UnavailableError: It does not answer, or does not let this server in.
        """

    def put(
        self,
        data: bytes,
        content_type: str = "application/octet-stream",
        *,
        folder: str = RESULTS,
    ) -> StoredObject:
        """Store ``data`` under its digest; where it lies already, its time to expire starts anew.

        Args:
            data: The bytes.
            content_type: Media type.
            folder: First part of the key, `RESULTS` or `TENSORS`.

        Raises:
            UnavailableError: The store cannot be reached, is full, or refuses.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        suffix = _SUFFIXES.get(content_type, "")
        location = Location(self.bucket, f"{folder}/{sha256[:2]}/{sha256}{suffix}")
        self._write(location, data, content_type, sha256)
        return StoredObject(
            uri=str(location), size=len(data), content_type=content_type, sha256=sha256
        )

    def put_named(
        self, key: str, data: bytes, content_type: str = "application/octet-stream"
    ) -> StoredObject:
        """Store ``data`` under a name of the caller's choice; what lies there already is replaced, as a whole.

        Args:
            key: Place in the bucket that is written, such as ``results/keys/one.json``; its first part decides when it
                expires, its suffix should fit the media type.
            data: The bytes.
            content_type: Media type.

        Raises:
            InputError: The key could lead out of the bucket, or is one that :meth:`put` gives to other content.
            UnavailableError: The store cannot be reached, is full, or refuses.
        """
        location = parse_uri(str(Location(self.bucket, key)))
        sha256 = hashlib.sha256(data).hexdigest()
        if digest_of_key(key) not in (None, sha256):
            raise InputError(f"{location} names other content; choose a key without a digest.")
        self._write(location, data, content_type, sha256)
        return StoredObject(
            uri=str(location), size=len(data), content_type=content_type, sha256=sha256
        )

    def get(self, uri: str, max_bytes: int) -> bytes:
        """The content of an object; its size is known to be allowed before it is read.

        Args:
            uri: ``s3://bucket/key``.
            max_bytes: The most to read.

        Raises:
            LimitError: It is bigger.
            InputError: There is no such object, its bucket is not read here, or it is not what was stored.
            UnavailableError: The store cannot be reached, or is too slow.
        """
        location = self._readable_location(uri)
        with self._open(location) as opened:
            if opened.size is not None and opened.size > max_bytes:
                raise _too_big(location, opened.size, max_bytes)
            data = _read(location, opened.chunks, max_bytes)
        if opened.sha256 is not None and hashlib.sha256(data).hexdigest() != opened.sha256:
            raise InputError(f"{location} is not what was meant to be stored; upload it again.")
        return data

    def stat(self, uri: str) -> StoredObject:
        """What is known of an object, without its content.

        Raises:
            InputError: There is no such object, or its bucket is not read here.
            UnavailableError: The store cannot be reached.
        """
        return self._stat(self._readable_location(uri))

    def link(self, uri: str, expires_s: int) -> str:
        """A URL by which whoever has it can read an object, as long as the link holds.

        Args:
            uri: ``s3://bucket/key``; whether it is there is not looked up.
            expires_s: Seconds, 1 to 604800 (a week).

        Raises:
            InputError: The bucket is not read here.
        """
        return self._link(self._readable_location(uri), expires_s)

    def create_upload(self, *, size: int, sha256: str, max_bytes: int, expires_s: int) -> Upload:
        """Let a client upload one object of exactly this size, under a key that cannot be guessed.

        Args:
            size: Its bytes, at least 1.
            sha256: Its digest, which `get` will check.
            max_bytes: The most that is allowed.
            expires_s: Seconds for which the upload can begin.

        Raises:
            LimitError: It is too big.
            InputError: Size or digest are none, or this kind of store takes no uploads.
        """
        if not self.remote:
            raise InputError(
                "This server's store takes no uploads; send the picture's bytes in `data`."
            )
        if size < 1 or not _DIGEST.fullmatch(sha256):
            raise InputError(
                "An upload needs its `size` in bytes and its `sha256` as 64 hexadecimal digits in lower case."
            )
        location = Location(self.bucket, f"{UPLOADS}/{uuid.uuid4().hex}")
        if size > max_bytes:
            raise LimitError(f"The image has {size} bytes; at most {max_bytes} are taken.")
        return self._upload(location, size, sha256, expires_s)

    def delete(self, uri: str) -> None:
        """Remove an object of the bucket that is written; one that is not there is no error.

        Raises:
            InputError: It lies in another bucket.
            UnavailableError: The store cannot be reached, or refuses.
        """
        location = parse_uri(uri)
        if location.bucket != self.bucket:
            raise _foreign(location)
        self._delete(location)

    def keys(self, folder: str) -> list[str]:
        """Keys of all objects whose key begins with ``folder`` and a slash, in the bucket that is written; sorted.

        Raises:
            InputError: The folder could lead out of the bucket.
            UnavailableError: The store cannot be reached, or refuses.
        """
        return sorted(self._keys(parse_uri(str(Location(self.bucket, folder)))))

    def _readable_location(self, uri: str) -> Location:
        location = parse_uri(uri)
        if location.bucket not in self._readable:
            raise _foreign(location)
        return location

    @abstractmethod
    def _write(self, location: Location, data: bytes, content_type: str, sha256: str) -> None: ...

    @abstractmethod
    def _open(self, location: Location) -> AbstractContextManager[Opened]: ...

    @abstractmethod
    def _stat(self, location: Location) -> StoredObject: ...

    @abstractmethod
    def _link(self, location: Location, expires_s: int) -> str: ...

    @abstractmethod
    def _upload(self, location: Location, size: int, sha256: str, expires_s: int) -> Upload: ...

    @abstractmethod
    def _delete(self, location: Location) -> None: ...

    @abstractmethod
    def _keys(self, folder: Location) -> Iterable[str]: ...


def missing(location: Location) -> InputError:
    """The error for an object that is not there; one that may not be read looks the same."""
    return InputError(f"{location} is not in the store, or may not be read; upload it first.")


def digest_of_key(key: str) -> str | None:
    """The digest that a key of `Store.put` names; None for other keys."""
    named = _KEY_OF_DIGEST.fullmatch(key)
    return named and named[1]


def _foreign(location: Location) -> InputError:
    return InputError(
        f"This server does not use the bucket {location.bucket!r}; upload the picture by CreateUpload, or ask the "
        "server's operator to add the bucket to VLMIR_STORE_READABLE."
    )


def _too_big(location: Location, size: int | str, most: int) -> LimitError:
    return LimitError(f"{location} has {size} bytes; at most {most} are taken.")


def _read(location: Location, chunks: Iterator[bytes], most: int) -> bytes:
    """Join ``chunks``, whatever size was announced, up to ``most`` bytes and for a limited time."""
    end = time.monotonic() + _DOWNLOAD_S
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise _too_big(location, f"more than {most}", most)
        if time.monotonic() > end:
            raise UnavailableError(f"The store is too slow to read {location}; try again later.")
    return bytes(data)
