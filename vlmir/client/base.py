"""What the blocking and the asynchronous client have in common: everything that does not wait."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Any

import grpc

from vlmir.client import transfer
from vlmir.client.channel import TLS, Budget
from vlmir.client.failures import LostError, cut_off, translated
from vlmir.client.messages import options_message, restoration
from vlmir.client.types import ClientRestoration
from vlmir.errors import VlmirError
from vlmir.image import read_file
from vlmir.options import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2

__all__ = ["UPLOAD_ABOVE", "BaseClient", "Order"]

UPLOAD_ABOVE = 4 << 20
"""Bytes of a picture above which it is uploaded, where the server takes uploads."""


class Order:
    """One picture to restore: what is asked for, and the time there is for it."""

    def __init__(
        self,
        image: bytes | Path,
        options: RestoreOptions | None,
        *,
        budget: Budget,
        request_id: str | None,
        store_result: bool,
    ) -> None:
        self.data = image if isinstance(image, bytes) else read_file(image)
        self.budget = budget
        self.request_id = request_id or uuid.uuid4().hex
        self.uploaded: image_pb2.ImageSource | None = None
        """Where the picture lies in the server's store, once it does."""
        self._options = options_message(options or RestoreOptions())
        self._store_result = store_result

    def fields(self, source: image_pb2.ImageSource, left: float | None) -> dict[str, Any]:
        """The request's fields, with the seconds that are left."""
        return {
            "image": source,
            "options": self._options,
            "request_id": self.request_id,
            "time_budget_ms": None if left is None else round(left * 1e3),
            "store_result": self._store_result,
        }

    def upload_request(self) -> restorer_pb2.CreateUploadRequest:
        """What asks for a link to upload the picture by."""
        return restorer_pb2.CreateUploadRequest(
            size=len(self.data),
            sha256=hashlib.sha256(self.data).hexdigest(),
            request_id=self.request_id,
        )


class BaseClient:
    """Settings of a client, and its steps that do not wait for the server."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None,
        tries: int,
        wait_for_ready: bool,
        tls: TLS | None,
        upload_above: int | None,
    ) -> None:
        self._address, self._timeout_s, self._tries = address, timeout_s, tries
        self._wait_for_ready, self._upload_above = wait_for_ready, upload_above
        self._ca = tls.ca if tls else None
        self._takes_uploads: bool | None = None

    def _order(
        self,
        image: bytes | Path,
        options: RestoreOptions | None,
        timeout_s: float | None,
        request_id: str | None,
        store_result: bool,
    ) -> Order:
        budget = Budget(self._timeout_s if timeout_s is None else timeout_s, self._tries)
        return Order(
            image, options, budget=budget, request_id=request_id, store_result=store_result
        )

    def _is_big(self, order: Order) -> bool:
        return self._upload_above is not None and len(order.data) > self._upload_above

    def _upload(
        self, order: Order, reply: restorer_pb2.CreateUploadResponse
    ) -> image_pb2.ImageSource:
        """Send the picture to the store."""
        left = order.budget.left()
        transfer.upload(order.data, reply.link, reply.fields, ca=self._ca, timeout_s=left)
        order.uploaded = image_pb2.ImageSource(uri=reply.uri)
        return order.uploaded

    def _collect(self, order: Order, result: restorer_pb2.RestoreResult) -> ClientRestoration:
        """The result, with the picture fetched where a link came in its place."""
        image = result.image
        if image.WhichOneof("content") != "uri":
            return restoration(result, image.data)
        left = order.budget.left()
        data = transfer.download(
            image.uri, size=image.size, sha256=image.sha256, ca=self._ca, timeout_s=left
        )
        return restoration(result, data)

    def _failure(self, error: grpc.RpcError, *, begun: bool = False) -> VlmirError:
        return translated(error, self._address, begun=begun)

    def _cut_off(self) -> LostError:
        return cut_off(self._address)
