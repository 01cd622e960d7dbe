"""The restoration service over other services."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from functools import partial
from typing import cast

from services.common.batching import until
from services.common.calls import CALLER
from services.common.deadlines import deadline_of
from services.common.server import max_message_bytes
from services.common.store import Store
from services.common.telemetry.metrics import Metrics
from services.common.wire import Delivery, image_bytes, restore_options, restore_replies
from services.common.work import WorkQueue
from services.restorer.cluster import Choice, Cluster
from services.restorer.kept import KeptResults, Order
from services.restorer.meters import RestorationMeters
from services.restorer.remote import ReleaseGone, Run
from services.restorer.results import Part, Results, deliver
from services.restorer.servicer import Context, PictureServicer, Reply, Request
from services.restorer.storing import Storing
from vlmir import __version__
from vlmir.errors import DeadlineError, UnavailableError
from vlmir.options import RestoreOptions
from vlmir.pipeline import Progress, Restoration
from vlmir.v1 import image_pb2, restorer_pb2

__all__ = ["ClusterServicer"]

log = logging.getLogger("vlmir.cluster")

_LINK_S = 30.0
"""For so long a result that is asked for by link waits for the store; then it comes in the reply."""
_SPARE_S = 0.5
"""Of the time that is left, what is kept for the way back."""
_FIND_S = 30.0
"""What it may take to find an earlier result."""


class ClusterServicer(PictureServicer):
    """Restores pictures by means of a cluster; computes each result once.

    Args:
        cluster: What restores.
        work: Its threads, one for each picture.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
        store: Where pictures are read from and results kept, not necessarily prepared; None: they travel in messages
            only.
        link_s: Seconds for which links to the store hold.
        meters: Count what is restored; None: nobody wants to know.
    """

    def __init__(
        self,
        cluster: Cluster,
        work: WorkQueue,
        *,
        limit_s: float,
        store: Store | None = None,
        link_s: int = 3600,
        meters: RestorationMeters | None = None,
    ) -> None:
        super().__init__(limits=cluster.limits, store=store, link_s=link_s)
        self._cluster, self._work, self._limit_s = cluster, work, limit_s
        self._meters = meters or RestorationMeters(Metrics().instruments)
        self._storing = Storing(store)
        self._results = Results(KeptResults(store) if store else None, self._storing)

    async def CreateUpload(
        self, request: restorer_pb2.CreateUploadRequest, context: Context
    ) -> restorer_pb2.CreateUploadResponse:
        """Give a link to upload a picture by, to a store that is ready for it."""
        await self._storing.run(lambda: None, deadline=_deadline(context, _FIND_S))
        return await super().CreateUpload(request, context)

    async def GetResult(
        self, request: restorer_pb2.GetResultRequest, context: Context
    ) -> restorer_pb2.GetResultResponse:
        """Give the result of an earlier request."""
        delivery = self._delivery(request)
        deadline = _deadline(context, _FIND_S)
        wanted = _scoped(request.request_id, context)
        result = await self._results.get(wanted, deadline=deadline)
        if result is None:
            return restorer_pb2.GetResultResponse(running=True)
        return restorer_pb2.GetResultResponse(
            result=await self._deliver(result, delivery, deadline)
        )

    async def Info(
        self, request: restorer_pb2.RestorerServiceInfoRequest, context: Context
    ) -> restorer_pb2.RestorerServiceInfoResponse:
        """Say what is being served; no release while a service is missing that is needed."""
        infos = await asyncio.to_thread(self._cluster.infos)
        refused = dict.fromkeys(one.refused_release for one in infos.services)
        service = image_pb2.ServiceInfo(
            limits=image_pb2.Limits(
                max_image_bytes=self._limits.max_bytes,
                max_image_pixels=self._limits.max_pixels,
                max_message_bytes=max_message_bytes(self._limits),
            ),
            queue_depth=self._work.depth,
            queue_capacity=self._work.capacity,
            version=__version__,
            refused_release=" ".join(text for text in refused if text),
        )
        solvers: list[str] = []
        if (choice := await self._choice()) is not None:
            service.release = choice.release
            service.digests.update(choice.digests)
            service.device = choice.device
            solvers = list(choice.sampler.solvers)
        return restorer_pb2.RestorerServiceInfoResponse(
            service=service,
            labels=infos.labels,
            solvers=solvers,
            takes_uploads=self._store is not None and self._store.remote,
            keeps_results=self._store is not None,
        )

    async def is_ready(self) -> bool:
        """Whether a picture could be restored now; raises nothing, since what it raised would be told to anybody."""
        try:
            return await self._choice() is not None
        except Exception:
            log.exception("cannot tell whether pictures can be restored")
            return False

    async def _choice(self) -> Choice | None:
        try:
            return await asyncio.to_thread(self._cluster.choose)
        except UnavailableError:
            return None

    async def _file(self, source: image_pb2.ImageSource, deadline: float | None) -> bytes:
        """The picture's file."""
        fetch = partial(image_bytes, source, self._store, max_bytes=self._limits.max_bytes)
        if source.WhichOneof("source") != "uri":
            return fetch()
        return await self._storing.run(fetch, deadline=deadline)

    async def _replies(
        self, request: Request, context: Context, *, previews: bool
    ) -> AsyncGenerator[Reply, None]:
        deadline = deadline_of(request, context, limit_s=self._limit_s)
        options, delivery = restore_options(request.options), self._delivery(request)
        data = await self._file(request.image, deadline)
        request_id = _scoped(request.request_id, context)
        order = await asyncio.to_thread(Order.of, request_id, data, options)
        for again in (False, True):
            async with until(deadline):
                choice = await asyncio.to_thread(self._cluster.choose, fresh=again)

            def start(choice: Choice = choice) -> AsyncGenerator[Part, None]:
                return self._restore(choice, data, options, previews=previews, deadline=deadline)

            replies = self._results.replies(
                order, choice.release, start, deadline=deadline, previews=previews
            )
            try:
                async with aclosing(replies):
                    async for reply in replies:
                        if reply.HasField("result"):
                            result = await self._deliver(reply.result, delivery, deadline)
                            reply = Reply(result=result)
                        yield reply
                return
            except ReleaseGone as error:
                if again:
                    raise UnavailableError(
                        "The weights were changed twice while the request began; try again."
                    ) from error

    async def _restore(
        self,
        choice: Choice,
        data: bytes,
        options: RestoreOptions,
        *,
        previews: bool,
        deadline: float | None,
    ) -> AsyncGenerator[Part, None]:
        """Restore a picture in a thread; closing the generator ends the call that this thread waits for."""
        run = Run(deadline)
        restorer = self._cluster.restorer(choice, run, previews=previews)

        made: list[Restoration] = []

        def stream() -> Generator[Progress, None, Restoration]:
            stream = restorer.stream(data, options, previews=previews)
            made.append((yield from self._meters.counted(stream)))
            return made[0]

        def steps() -> Generator[Reply, None, None]:
            return restore_replies(stream())

        try:
            async with aclosing(self._work.run(steps, deadline=deadline)) as replies:
                async for reply in replies:
                    is_result = reply.HasField("result")
                    yield Part(reply, degraded=is_result and made[0].degraded)
        finally:
            run.cancel()

    async def _deliver(
        self, result: restorer_pb2.RestoreResult, delivery: Delivery | None, deadline: float | None
    ) -> restorer_pb2.RestoreResult:
        """The result as its caller wants it; what is computed is not lost because the store hangs."""
        image = result.image
        has_data = image.WhichOneof("content") == "data"
        if delivery is None or (has_data and not delivery.by_link(len(image.data))):
            return deliver(result, None)
        if has_data:
            most = time.monotonic() + _LINK_S
            deadline = most if deadline is None else min(most, deadline - _SPARE_S)
        try:
            return await self._storing.run(partial(deliver, result, delivery), deadline=deadline)
        except Exception as error:
            if not has_data:
                raise
            why = _why_not_stored(error)
        reply = deliver(result, None)
        reply.report.warnings.append(
            f"The result came in the reply, not by link: {why.rstrip('.')}."
        )
        return reply


def _deadline(context: Context, most_s: float) -> float:
    """When to give up a call that computes nothing."""
    # None without a deadline, whatever the type stubs say.
    remaining = cast(float | None, context.time_remaining())
    return time.monotonic() + (most_s if remaining is None else min(most_s, remaining))


def _why_not_stored(error: Exception) -> str:
    match error:
        case DeadlineError():
            return "the store is too slow"
        case UnavailableError():
            return str(error)
        case _:
            log.error("the store failed unexpectedly", exc_info=error)
            return "the store failed"


def _scoped(request_id: str, context: Context) -> str:
    """A request's id as results are kept under it: what one caller chose means nothing to another."""
    who = dict(context.invocation_metadata() or ()).get(CALLER)
    return f"{who!s}/{request_id}" if who and request_id else request_id
