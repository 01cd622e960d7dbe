"""The restoration service over a `vlmir.pipeline.Restorer`: it only translates."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc

from services.common.server import max_message_bytes
from services.common.wire import image_bytes, restore_options, restore_replies
from services.common.work import WorkQueue
from vlmir import __version__
from vlmir.pipeline import Restorer
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceServicer

__all__ = ["RestorerServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request: TypeAlias = restorer_pb2.RestoreRequest | restorer_pb2.RestoreStreamRequest
Reply: TypeAlias = restorer_pb2.RestoreStreamResponse


class RestorerServicer(RestorerServiceServicer):
    """Answers ``Restore``, ``RestoreStream`` and ``Info``.

    Errors are left to the interceptor, limits on work to the queue.

    Args:
        restorer: What restores.
        work: Where it restores.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
    """

    def __init__(self, restorer: Restorer, work: WorkQueue, *, limit_s: float) -> None:
        self._restorer, self._work, self._limit_s = restorer, work, limit_s

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
            service=service, labels=restorer.labels, solvers=restorer.solvers
        )

    def _replies(
        self, request: Request, context: Context, *, previews: bool
    ) -> AsyncGenerator[Reply, None]:
        image, options = image_bytes(request.image), restore_options(request.options)
        return self._work.run(
            lambda: restore_replies(self._restorer.stream(image, options, previews=previews)),
            deadline=self._deadline(request, context),
        )

    def _deadline(self, request: Request, context: Context) -> float | None:
        """The soonest of the server's limit, the call's deadline and the request's budget, on `time.monotonic`."""
        # None without a deadline, whatever the type stubs say.
        remaining = cast(float | None, context.time_remaining())
        budgets = [seconds for seconds in (self._limit_s or None, remaining) if seconds is not None]
        if request.HasField("time_budget_ms"):
            budgets.append(request.time_budget_ms / 1e3)
        return time.monotonic() + min(budgets) if budgets else None
