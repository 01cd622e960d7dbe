"""Arrays between services: small ones in their messages, big ones by way of the object store."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Sequence

from services.common.store import TENSORS, Store
from services.common.store.uri import parse_uri
from services.common.tensors import Array, from_message, to_message
from vlmir.errors import InputError, UnavailableError, VlmirError
from vlmir.v1 import image_pb2

__all__ = ["Parcels"]

log = logging.getLogger("vlmir.parcels")


class Parcels:
    """Sends and receives arrays. Methods block; any number of threads may call them.

    Args:
        store: Where big arrays lie on their way; None: all travel in messages.
        above: Bytes; an array with more is big.
    """

    def __init__(self, store: Store | None = None, *, above: int = 0) -> None:
        self._store, self._above = store, above

    @property
    def has_store(self) -> bool:
        """Whether arrays in a store can be received."""
        return self._store is not None

    def send(self, array: Array) -> image_pb2.Tensor:
        """An array as a message; it lies in the store if it is big and the store takes it.

        Raises:
            InputError: The elements are of a type that does not travel.
        """
        message = to_message(array)
        if self._store is None or len(message.data) <= self._above:
            return message
        try:
            key = f"{TENSORS}/{uuid.uuid4().hex}.bin"
            message.uri = self._store.put_named(key, message.data).uri
        except UnavailableError as error:  # a big message is better than none
            log.warning("an array travels in its message: %s", error)
        return message

    def receive(
        self, message: image_pb2.Tensor, *, shape: Sequence[int | None], name: str
    ) -> Array:
        """The array of a message, wherever it lies; its size is checked before it is fetched.

        Args:
            message: The message.
            shape: Length wanted of each axis; None: any length from 1 on.
            name: What errors call the array.

        Returns:
            float32, C order, not writeable.

        Raises:
            InputError: Its type, shape or length is not the one wanted, or its URI is none of those that are sent.
            UnavailableError: The store cannot be reached, or does not have it.
        """
        fetch = None if self._store is None else self._fetch
        return from_message(message, shape=shape, name=name, fetch=fetch)

    def drop(self, message: image_pb2.Tensor) -> None:
        """Give up an array that has arrived. What cannot be deleted now expires."""
        if self._store is not None and message.WhichOneof("content") == "uri":
            with contextlib.suppress(VlmirError):
                self._store.delete(message.uri)

    def _fetch(self, uri: str, size: int) -> bytes:
        assert self._store is not None
        location = parse_uri(uri)
        if location.bucket != self._store.bucket or not location.key.startswith(f"{TENSORS}/"):
            raise InputError(f"{uri} is no array that services send to one another.")
        try:
            return self._store.get(uri, size)
        except InputError as error:
            raise UnavailableError(
                "An array on its way is not in the store; give all services the same one."
            ) from error
