"""``s3://bucket/key``: taken apart and checked, the same way for every kind of store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlmir.errors import InputError

__all__ = ["BUCKET", "Location", "parse_uri"]

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""A bucket's name, as S3 wants it."""

_SCHEME = "s3://"
_MOST_KEY_BYTES = 1024


@dataclass(frozen=True)
class Location:
    """A place in a store."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"


def parse_uri(uri: str) -> Location:
    """The place that ``uri`` names; nothing in it is decoded or normalised.

    Raises:
        InputError: It is no ``s3://bucket/key``, or the key could lead out of its bucket.
    """
    bucket, slash, key = uri.removeprefix(_SCHEME).partition("/")
    if not (uri.startswith(_SCHEME) and slash and BUCKET.fullmatch(bucket) and _is_key(key)):
        raise InputError(
            f"{uri[:200]!r} is no address in a store; write s3://bucket/key, with no empty part, . or .. in it."
        )
    return Location(bucket, key)


def _is_key(key: str) -> bool:
    return (
        len(key.encode("utf-8", "replace")) <= _MOST_KEY_BYTES
        and key.isprintable()
        and "\\" not in key
        and not any(part in ("", ".", "..") for part in key.split("/"))
    )
