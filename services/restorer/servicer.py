"""The restoration service over a `vlmir.pipeline.Restorer`: it only translates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from services.common.deadlines import deadline_of
from services.common.server import max_message_bytes
from services.common.store import Store
from services.common.telemetry.metrics import Metrics
from services.common.wire import Delivery, image_bytes, restore_options, restore_replies
from services.common.work import WorkQueue
from services.restorer.meters import RestorationMeters
from vlmir import __version__
from vlmir.errors import InputError
from vlmir.image import Limits
from vlmir.pipeline import RestoreOptions, Restorer
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceServicer

__all__ = ["PictureServicer", "RestorerServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request: TypeAlias = restorer_pb2.RestoreRequest | restorer_pb2.RestoreStreamRequest
Reply: TypeAlias = restorer_pb2.RestoreStreamResponse


class PictureServicer(RestorerServiceServicer):
    """What all kinds of restorer have in common: how pictures come, and how results go.

    Errors are left to whoever calls the methods.

    Args:
        limits: What pictures are accepted.
        store: Where pictures are read from and results put; None: they travel in messages only.
        link_s: Seconds for which links to the store hold.
    """

    def __init__(self, *, limits: Limits, store: Store | None, link_s: int) -> None:
        self._limits, self._store, self._link_s = limits, store, link_s

    async def Restore(
        self, request: restorer_pb2.RestoreRequest, context: Context
    ) -> restorer_pb2.RestoreResponse:
        """Restore one picture. Steps are taken one by one here too, so that it can be cancelled."""
        replies = [reply async for reply in self._replies(request, context, previews=False)]
        return restorer_pb2.RestoreResponse(result=replies[-1].result)

    async def RestoreStream(
        self, request: restorer_pb2.RestoreStreamRequest, context: Context
    ) -> AsyncGenerator[Reply, None]:
        """Restore one picture, progress first."""
        replies = self._replies(request, context, previews=request.previews)
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def CreateUpload(
        self, request: restorer_pb2.CreateUploadRequest, context: Context
    ) -> restorer_pb2.CreateUploadResponse:
        """Give a link to upload a picture by; signing it takes no time and no connection."""
        upload = self._need_store().create_upload(
            size=request.size,
            sha256=request.sha256,
            max_bytes=self._limits.max_bytes,
            expires_s=self._link_s,
        )
        return restorer_pb2.CreateUploadResponse(
            uri=upload.uri, link=upload.link, fields=upload.fields, expires_s=upload.expires_s
        )

    @abstractmethod
    def _replies(
        self, request: Request, context: Context, *, previews: bool
    ) -> AsyncGenerator[Reply, None]:
        """Progress, then the result; closing the generator cancels."""

    def _delivery(self, request: Request | restorer_pb2.GetResultRequest) -> Delivery | None:
        if self._store is None and not request.store_result:
            return None
        return Delivery(
            store=self._need_store(),
            asked=request.store_result,
            inline_bytes=max_message_bytes(self._limits),
            link_s=self._link_s,
        )

    def _need_store(self) -> Store:
        if self._store is None:
            raise InputError(
                "This server has no object store; send and receive pictures in messages."
            )
        return self._store


class RestorerServicer(PictureServicer):
    """Restores pictures in this process.

    Errors are left to the interceptor, limits on work to the queue.

    Args:
        restorer: What restores.
        work: Where it restores.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
        store: Where pictures are read from and results put; None: they travel in messages only.
        link_s: Seconds for which links to the store hold.
        meters: Count what is restored; None: nobody wants to know.
    """

    def __init__(
        self,
        restorer: Restorer,
        work: WorkQueue,
        *,
        limit_s: float,
        store: Store | None = None,
        link_s: int = 3600,
        meters: RestorationMeters | None = None,
    ) -> None:
        super().__init__(limits=restorer.limits, store=store, link_s=link_s)
        self._restorer, self._work, self._limit_s = restorer, work, limit_s
        self._meters = meters or RestorationMeters(Metrics().instruments)

    async def GetResult(
        self, request: restorer_pb2.GetResultRequest, context: Context
    ) -> restorer_pb2.GetResultResponse:
        """Results are not kept here.

        Raises:
            InputError: Always.
        """
        raise InputError("This server keeps no results; send the request again.")

    async def Info(
        self, request: restorer_pb2.RestorerServiceInfoRequest, context: Context
    ) -> restorer_pb2.RestorerServiceInfoResponse:
        """Say what is being served."""
        restorer, limits = self._restorer, self._restorer.limits
        service = image_pb2.ServiceInfo(
            release=restorer.release,
            digests=restorer.digests,
            device=restorer.device,
            limits=image_pb2.Limits(
                max_image_bytes=limits.max_bytes,
                max_image_pixels=limits.max_pixels,
                max_message_bytes=max_message_bytes(limits),
            ),
            queue_depth=self._work.depth,
            queue_capacity=self._work.capacity,
            version=__version__,
        )
        return restorer_pb2.RestorerServiceInfoResponse(
            service=service,
            labels=restorer.labels,
            solvers=restorer.solvers,
            takes_uploads=self._store is not None and self._store.remote,
        )

    def _replies(
        self, request: Request, context: Context, *, previews: bool
    ) -> AsyncGenerator[Reply, None]:
        options, delivery = restore_options(request.options), self._delivery(request)
        return self._work.run(
            lambda: self._steps(request.image, options, previews, delivery),
            deadline=deadline_of(request, context, limit_s=self._limit_s),
        )

    def _steps(
        self,
        source: image_pb2.ImageSource,
        options: RestoreOptions,
        previews: bool,
        delivery: Delivery | None,
    ) -> Generator[Reply, None, None]:
        """The work in its thread, where it may wait for the store."""
        image = image_bytes(source, self._store, max_bytes=self._restorer.limits.max_bytes)
        stream = self._restorer.stream(image, options, previews=previews)
        yield from restore_replies(self._meters.counted(stream), delivery)
