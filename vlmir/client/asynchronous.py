"""`AsyncRestorationClient`: the same for asyncio, many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

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

__all__ = ["AsyncRestorationClient"]


class AsyncRestorationClient(BaseClient):
    """A connection to a restoration server, as an asynchronous context manager; make it in a running event loop.

    Methods, arguments and errors are those of `RestorationClient`; a task that is cancelled cancels its call.

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
            self._channel = grpc.aio.insecure_channel(address, options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        self._stub = RestorerServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls still running are cancelled."""
        await self._channel.close()

    async def restore(
        self,
        image: bytes | Path,
        options: RestoreOptions | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        store_result: bool = False,
    ) -> ClientRestoration:
        """Restore one picture; see `RestorationClient.restore`."""
        order = await self._read(image, options, timeout_s, request_id, store_result)

        async def send(
            source: image_pb2.ImageSource, left: float | None
        ) -> restorer_pb2.RestoreResult:
            request = restorer_pb2.RestoreRequest(**order.fields(source, left))
            reply = await self._ask(self._stub.Restore, request, left)
            return cast(restorer_pb2.RestoreResponse, reply).result

        return await self._restored(order, send)

    async def stream(
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
        """Restore one picture and hear how far it is; see `RestorationClient.stream`.

        ``on_progress`` is a plain function, called in the event loop.
        """
        order = await self._read(image, options, timeout_s, request_id, store_result)

        async def send(
            source: image_pb2.ImageSource, left: float | None
        ) -> restorer_pb2.RestoreResult:
            request = restorer_pb2.RestoreStreamRequest(
                previews=previews, **order.fields(source, left)
            )
            call = self._stub.RestoreStream(
                request, timeout=left, wait_for_ready=self._wait_for_ready
            )
            replies = aiter(call)
            try:
                reply = await self._received(replies, begun=False)
                while reply.HasField("progress"):
                    on_progress(progress(reply.progress))
                    reply = await self._received(replies, begun=True)
                return reply.result
            finally:
                call.cancel()  # no effect on a call that is over

        return await self._restored(order, send)

    async def info(self, *, timeout_s: float = 10.0) -> ServerInfo:
        """What the server says about itself."""
        request = restorer_pb2.RestorerServiceInfoRequest()
        return server_info(await self._ask(self._stub.Info, request, timeout_s))

    async def _read(self, *order: Any) -> Order:
        return await asyncio.to_thread(self._order, *order)

    async def _restored(
        self,
        order: Order,
        send: Callable[
            [image_pb2.ImageSource, float | None], Awaitable[restorer_pb2.RestoreResult]
        ],
    ) -> ClientRestoration:
        while True:
            try:
                source = await self._source(order)
                result = await send(source, order.budget.left())
                return await asyncio.to_thread(self._collect, order, result)
            except (OverloadedError, LostError) as error:
                await asyncio.sleep(order.budget.delay_after(error))

    async def _source(self, order: Order) -> image_pb2.ImageSource:
        """The picture itself, or its place in the store, where it is big and the server has one."""
        if order.uploaded is not None:
            return order.uploaded
        if not self._is_big(order):
            return image_pb2.ImageSource(data=order.data)
        if self._takes_uploads is None:
            about = restorer_pb2.RestorerServiceInfoRequest()
            info = await self._ask(self._stub.Info, about, order.budget.left())
            self._takes_uploads = info.takes_uploads
        if not self._takes_uploads:
            return image_pb2.ImageSource(data=order.data)
        request = await asyncio.to_thread(order.upload_request)  # hashes the picture
        reply = await self._ask(self._stub.CreateUpload, request, order.budget.left())
        return await asyncio.to_thread(self._upload, order, reply)

    async def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    async def _received(
        self, replies: AsyncIterator[restorer_pb2.RestoreStreamResponse], *, begun: bool
    ) -> restorer_pb2.RestoreStreamResponse:
        # Apart from the loop, so that only the call's errors are translated, not the callback's.
        try:
            return await anext(replies)
        except grpc.RpcError as error:
            raise self._failure(error, begun=begun) from error
        except StopAsyncIteration:
            raise self._cut_off() from None
