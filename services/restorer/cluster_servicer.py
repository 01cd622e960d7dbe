"""The restoration service over other services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing

from services.common.deadlines import deadline_of
from services.common.server import max_message_bytes
from services.common.store import Store
from services.common.wire import Delivery, image_bytes, restore_options, restore_replies
from services.common.work import WorkQueue
from services.restorer.cluster import Choice, Cluster
from services.restorer.kept import KeptResults, Order
from services.restorer.remote import ReleaseGone, Run
from services.restorer.results import Results, deliver
from services.restorer.servicer import Context, PictureServicer, Reply, Request
from vlmir import __version__
from vlmir.errors import UnavailableError
from vlmir.options import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2

__all__ = ["ClusterServicer"]


class ClusterServicer(PictureServicer):
    """Restores pictures by means of a cluster; computes each result once.

    Args:
        cluster: What restores.
        work: Its threads, one for each picture.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
        store: Where pictures are read from and results kept; None: they travel in messages only.
        link_s: Seconds for which links to the store hold.
    """

    def __init__(
        self,
        cluster: Cluster,
        work: WorkQueue,
        *,
        limit_s: float,
        store: Store | None = None,
        link_s: int = 3600,
    ) -> None:
        super().__init__(limits=cluster.limits, store=store, link_s=link_s)
        self._cluster, self._work, self._limit_s = cluster, work, limit_s
        self._results = Results(KeptResults(store) if store else None)

    async def GetResult(
        self, request: restorer_pb2.GetResultRequest, context: Context
    ) -> restorer_pb2.GetResultResponse:
        """Give the result of an earlier request."""
        delivery = self._delivery(request)
        result = await self._results.get(request.request_id)
        if result is None:
            return restorer_pb2.GetResultResponse(running=True)
        return restorer_pb2.GetResultResponse(
            result=await asyncio.to_thread(deliver, result, delivery)
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
            service.device = choice.sampler.service.device
            solvers = list(choice.sampler.solvers)
        return restorer_pb2.RestorerServiceInfoResponse(
            service=service,
            labels=self._cluster.labels,
            solvers=solvers,
            takes_uploads=self._store is not None and self._store.remote,
            keeps_results=self._store is not None,
        )

    async def is_ready(self) -> bool:
        """Whether a picture could be restored now."""
        return await self._choice() is not None

    async def _choice(self) -> Choice | None:
        try:
            return await asyncio.to_thread(self._cluster.choose)
        except UnavailableError:
            return None

    async def _replies(
        self, request: Request, context: Context, *, previews: bool
    ) -> AsyncGenerator[Reply, None]:
        deadline = deadline_of(request, context, limit_s=self._limit_s)
        options, delivery = restore_options(request.options), self._delivery(request)
        data = await asyncio.to_thread(
            image_bytes, request.image, self._store, max_bytes=self._limits.max_bytes
        )
        order = await asyncio.to_thread(Order.of, request.request_id, data, options)
        for again in (False, True):
            choice = await asyncio.to_thread(self._cluster.choose, fresh=again)

            def start(choice: Choice = choice) -> AsyncGenerator[Reply, None]:
                return self._restore(choice, data, options, previews=previews, deadline=deadline)

            replies = self._results.replies(order, choice.release, start, deadline=deadline)
            try:
                async with aclosing(replies):
                    async for reply in replies:
                        yield await _delivered(reply, delivery)
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
    ) -> AsyncGenerator[Reply, None]:
        """Restore a picture in a thread; closing the generator ends the call that this thread waits for."""
        run = Run(deadline)
        restorer = self._cluster.restorer(choice, run, previews=previews)

        def steps() -> Generator[Reply, None, None]:
            return restore_replies(restorer.stream(data, options, previews=previews))

        try:
            async with aclosing(self._work.run(steps, deadline=deadline)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            run.cancel()


async def _delivered(reply: Reply, delivery: Delivery | None) -> Reply:
    if reply.WhichOneof("event") != "result":
        return reply
    return Reply(result=await asyncio.to_thread(deliver, reply.result, delivery))
