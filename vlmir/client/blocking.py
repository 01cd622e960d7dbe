"""`RestorationClient`: restoring on a server, call by call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from vlmir.client.base import UPLOAD_ABOVE, BaseClient, Order
from vlmir.client.channel import TLS, channel_credentials, channel_options
from vlmir.client.failures import LostError
from vlmir.client.messages import progress, server_info
from vlmir.client.types import ClientProgress, ClientRestoration, ServerInfo
from vlmir.errors import OverloadedError
from vlmir.options import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

__all__ = ["RestorationClient"]

T = TypeVar("T")


class RestorationClient(BaseClient):
    """A connection to a restoration server; use it as a context manager.

    Every method raises the library's errors: `InputError` and its kin for what the caller sent,
    `OverloadedError` with a delay for a full queue, `UnavailableError` when there is no server,
    `DeadlineError` when the time ran out. Calls are tried again where no server answers or it breaks off, and, after
    the delay it asks for, where it is overloaded: asked twice, it restores a picture to the same pixels.

    Args:
        address: ``host:port`` of the server.
        timeout_s: Seconds a call may take, all its tries included, unless it says otherwise; None for no limit.
        tries: How often a server is asked that is overloaded or breaks off, at least 1.
        wait_for_ready: Wait for a server that does not answer as long as the call may take, in place of a few tries.
        tls: How to encrypt the connection; None for plain text.
        token: Proves to the server who calls; only with ``tls``.
        upload_above: Pictures of more bytes travel by way of the server's object store, where it takes uploads; None:
            never.

    Raises:
        OptionError: A certificate cannot be read, or a token was given without ``tls``.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = 300.0,
        tries: int = 3,
        wait_for_ready: bool = False,
        tls: TLS | None = None,
        token: str | None = None,
        upload_above: int | None = UPLOAD_ABOVE,
    ) -> None:
        super().__init__(
            address,
            timeout_s=timeout_s,
            tries=tries,
            wait_for_ready=wait_for_ready,
            tls=tls,
            upload_above=upload_above,
        )
        credentials, options = channel_credentials(tls, token), channel_options()
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = RestorerServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls still running are cancelled."""
        self._channel.close()

    def restore(
        self,
        image: bytes | Path,
        options: RestoreOptions | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        store_result: bool = False,
    ) -> ClientRestoration:
        """Restore one picture.

        Args:
            image: A whole image file, or its path.
            options: How; None for the defaults.
            timeout_s: Seconds it may take; None for the client's.
            request_id: Name of the call in the server's log; None for a new one.
            store_result: Have the server keep the result, too, and say where.
        """
        order = self._order(image, options, timeout_s, request_id, store_result)

        def send(source: image_pb2.ImageSource, left: float | None) -> restorer_pb2.RestoreResult:
            request = restorer_pb2.RestoreRequest(**order.fields(source, left))
            reply: restorer_pb2.RestoreResponse = self._ask(self._stub.Restore, request, left)
            return reply.result

        return self._restored(order, send)

    def stream(
        self,
        image: bytes | Path,
        options: RestoreOptions | None = None,
        *,
        on_progress: Callable[[ClientProgress], object],
        previews: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
        store_result: bool = False,
    ) -> ClientRestoration:
        """Restore one picture and hear how far it is.

        Args:
            image: A whole image file, or its path.
            options: How; None for the defaults.
            on_progress: Called after each tile of each step, from the start again where the call is tried again; an
                exception it raises cancels the call.
            previews: True to get a preview after each whole step.
            timeout_s: Seconds it may take; None for the client's.
            request_id: Name of the call in the server's log; None for a new one.
            store_result: Have the server keep the result, too, and say where.
        """
        order = self._order(image, options, timeout_s, request_id, store_result)

        def send(source: image_pb2.ImageSource, left: float | None) -> restorer_pb2.RestoreResult:
            request = restorer_pb2.RestoreStreamRequest(
                previews=previews, **order.fields(source, left)
            )
            call = self._stub.RestoreStream(
                request, timeout=left, wait_for_ready=self._wait_for_ready
            )
            replies = iter(call)
            try:
                reply = self._received(replies, begun=False)
                while reply.HasField("progress"):
                    on_progress(progress(reply.progress))
                    reply = self._received(replies, begun=True)
                return reply.result
            finally:
                call.cancel()  # no effect on a call that is over

        return self._restored(order, send)

    def info(self, *, timeout_s: float = 10.0) -> ServerInfo:
        """What the server says about itself."""
        request = restorer_pb2.RestorerServiceInfoRequest()
        return server_info(self._ask(self._stub.Info, request, timeout_s))

    def _restored(
        self,
        order: Order,
        send: Callable[[image_pb2.ImageSource, float | None], restorer_pb2.RestoreResult],
    ) -> ClientRestoration:
        while True:
            try:
                source = self._source(order)
                return self._collect(order, send(source, order.budget.left()))
            except (OverloadedError, LostError) as error:
                time.sleep(order.budget.delay_after(error))

    def _source(self, order: Order) -> image_pb2.ImageSource:
        """The picture itself, or its place in the store, where it is big and the server has one."""
        if order.uploaded is not None:
            return order.uploaded
        if not self._is_big(order):
            return image_pb2.ImageSource(data=order.data)
        if self._takes_uploads is None:
            about = restorer_pb2.RestorerServiceInfoRequest()
            info = self._ask(self._stub.Info, about, order.budget.left())
            self._takes_uploads = info.takes_uploads
        if not self._takes_uploads:
            return image_pb2.ImageSource(data=order.data)
        request, left = order.upload_request(), order.budget.left()
        return self._upload(order, self._ask(self._stub.CreateUpload, request, left))

    def _ask(self, method: Callable[..., T], request: Any, timeout_s: float | None) -> T:
        try:
            return method(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def _received(
        self, replies: Iterator[restorer_pb2.RestoreStreamResponse], *, begun: bool
    ) -> restorer_pb2.RestoreStreamResponse:
        # Apart from the loop, so that only the call's errors are translated, not the callback's.
        try:
            return next(replies)
        except grpc.RpcError as error:
            raise self._failure(error, begun=begun) from error
        except StopIteration:
            raise self._cut_off() from None
