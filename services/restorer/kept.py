"""Results in the store, by what was asked for and by request: known to all replicas, and after a crash.

Beside the pictures, which are named by their content, lie small JSON objects under names of ours: the record of a
result, the pointer from a request's id to it, and the claim of whoever computes it. They expire as results do. Servers
of other versions write them too: what this one cannot read is taken for absent.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from services.common.store import RESULTS, Store
from services.common.store.uri import Location
from vlmir.errors import InputError
from vlmir.options import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2

__all__ = ["CLAIM_S", "KeptResults", "Order", "Pointer", "own_key", "put_picture"]

CLAIM_S = 5.0
"""For so long a claim holds that is not renewed: the time until another takes over from one that died."""

_MOST_BYTES = 1 << 20
_TYPES = {
    image_pb2.IMAGE_FORMAT_PNG: "image/png",
    image_pb2.IMAGE_FORMAT_JPEG: "image/jpeg",
    image_pb2.IMAGE_FORMAT_WEBP: "image/webp",
    image_pb2.IMAGE_FORMAT_TIFF: "image/tiff",
}


@dataclass(frozen=True)
class Order:
    """What a request asks for, as far as it decides the result."""

    request_id: str
    """As its caller chose it, after the caller's name and a slash where that is known; empty where it did not."""
    fingerprint: str
    """Of picture and options."""

    @classmethod
    def of(cls, request_id: str, data: bytes, options: RestoreOptions) -> Order:
        """The order for a picture's file with all its options, the defaults included."""
        asked = {"picture": hashlib.sha256(data).hexdigest(), "options": asdict(options)}
        return cls(request_id, _digest(json.dumps(asked, sort_keys=True)))

    def key(self, release: str) -> str:
        """Names the result that a release gives."""
        return _digest(f"{self.fingerprint} {release}")

    @property
    def own_key(self) -> str:
        """Names a result that is this request's only."""
        return own_key(self.request_id, self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What a request's id stands for."""

    fingerprint: str
    """What was asked for."""
    key: str
    """Of the result."""
    made: float
    """When, by the clock."""

    @classmethod
    def to(cls, order: Order, key: str) -> Pointer:
        """From an order to its result, made now."""
        return cls(fingerprint=order.fingerprint, key=key, made=time.time())

    @property
    def is_new(self) -> bool:
        """Whether it is younger than a claim holds."""
        return time.time() < self.made + CLAIM_S


class KeptResults:
    """Methods block, and raise UnavailableError where the store cannot be reached.

    Args:
        store: Where results lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owner = uuid.uuid4().hex

    def find(self, key: str) -> restorer_pb2.RestoreResult | None:
        """A result without its picture's bytes: ``image.store_uri`` tells where they are. None: there is none."""
        text = self._read("keys", key)
        if text is None:
            return None
        try:
            result = Parse(text, restorer_pb2.RestoreResult(), ignore_unknown_fields=True)
        except (ParseError, UnicodeDecodeError):
            return None
        try:
            self._store.stat(result.image.store_uri)
        except InputError:  # it has expired before its record
            return None
        return result

    def keep(self, key: str, result: restorer_pb2.RestoreResult) -> restorer_pb2.RestoreResult:
        """Store a result; returns it with ``image.store_uri``, ``sha256`` and ``size`` set beside its bytes."""
        kept = restorer_pb2.RestoreResult()
        kept.CopyFrom(result)
        put_picture(kept.image, self._store)
        record = restorer_pb2.RestoreResult(image=kept.image, report=kept.report)
        record.image.ClearField("content")
        self._write("keys", key, MessageToJson(record))
        return kept

    def pointer(self, request_id: str) -> Pointer | None:
        """What an id stands for; None: nothing yet."""
        match self._read_json("requests", _digest(request_id)):
            case {"fingerprint": str(fingerprint), "key": str(key), "made": float(made)}:
                return Pointer(fingerprint=fingerprint, key=key, made=made)
        return None

    def point(self, request_id: str, pointer: Pointer) -> None:
        """Let a request's id stand for a result, which may not be there yet."""
        self._write("requests", _digest(request_id), json.dumps(asdict(pointer)))

    def is_claimed(self, key: str) -> bool:
        """Whether somebody else is computing a result, as far as is known."""
        match self._read_json("claims", key):
            case {"owner": str(owner), "expires": float(expires)}:
                return owner != self._owner and time.time() < expires
        return False

    def claim(self, key: str) -> None:
        """Tell others, for a while, that the result is being computed here."""
        values = {"owner": self._owner, "expires": time.time() + CLAIM_S}
        self._write("claims", key, json.dumps(values))

    def unclaim(self, key: str) -> None:
        """Tell others that it is not computed here any more."""
        self._store.delete(self._uri("claims", key))

    def _uri(self, kind: str, name: str) -> str:
        return str(Location(self._store.bucket, _key(kind, name)))

    def _read(self, kind: str, name: str) -> bytes | None:
        try:
            return self._store.get(self._uri(kind, name), _MOST_BYTES)
        except InputError:
            return None

    def _read_json(self, kind: str, name: str) -> Any:
        text = self._read(kind, name)
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return None

    def _write(self, kind: str, name: str, text: str) -> None:
        self._store.put_named(_key(kind, name), text.encode(), "application/json")


def own_key(request_id: str, fingerprint: str) -> str:
    """Names a result that is one request's only."""
    return _digest(f"{fingerprint} request {request_id}")


def _key(kind: str, name: str) -> str:
    return f"{RESULTS}/{kind}/{name}.json"


def put_picture(image: image_pb2.EncodedImage, store: Store) -> None:
    """Store a picture's bytes, and tell in the message where.

    Raises:
        UnavailableError: The store cannot be reached.
    """
    stored = store.put(image.data, _TYPES[image.format])
    image.store_uri, image.size, image.sha256 = stored.uri, stored.size, stored.sha256 or ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
