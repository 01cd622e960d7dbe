"""The captioning service: it only translates."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from services.captioner.cache import CaptionCache
from services.captioner.model import CaptionerModel, Look
from services.common.deadlines import deadline_of
from services.common.info import Load, service_info
from services.common.releases import Releases
from services.common.wire import image_bytes
from services.common.work import WorkQueue
from vlmir.image import Limits
from vlmir.v1 import captioner_pb2, image_pb2
from vlmir.v1.captioner_pb2_grpc import CaptionerServiceServicer

__all__ = ["CaptionerServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CaptionerServicer(CaptionerServiceServicer):
    """Answers ``Caption`` and ``Info``; errors are left to the interceptor.

    Args:
        releases: The captioners that may answer.
        decoding: Where pictures are decoded and made small.
        cache: Captions known already.
        limits: What pictures are accepted.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
    """

    def __init__(
        self,
        releases: Releases[CaptionerModel],
        *,
        decoding: WorkQueue,
        cache: CaptionCache,
        limits: Limits,
        limit_s: float,
    ) -> None:
        self._releases, self._decoding, self._cache = releases, decoding, cache
        self._limits, self._limit_s = limits, limit_s

    async def Caption(
        self, request: captioner_pb2.CaptionRequest, context: Context
    ) -> captioner_pb2.CaptionResponse:
        """Caption one picture."""
        deadline = deadline_of(request, context, limit_s=self._limit_s)
        with self._releases.lease(request.release) as held:
            began = time.perf_counter()
            look = await self._look(held.model, request.image, deadline)
            decoded = time.perf_counter()
            caption = self._cache.get(held.release, look.digest)
            if caption is None:
                caption = await held.model.batcher(look.view, deadline=deadline)
                self._cache.put(held.release, look.digest, caption)
            spent = {"decode": decoded - began, "caption": time.perf_counter() - decoded}
            return captioner_pb2.CaptionResponse(
                caption=caption,
                release=held.release,
                milliseconds={stage: round(seconds * 1e3, 3) for stage, seconds in spent.items()},
            )

    async def Info(
        self, request: captioner_pb2.CaptionerServiceInfoRequest, context: Context
    ) -> captioner_pb2.CaptionerServiceInfoResponse:
        """Say what is being served."""
        device, size = "", 0
        if self._releases.names:
            with self._releases.lease() as held:
                device, size = held.model.device, held.model.image_size
        service = service_info(self._releases, device=device, limits=self._limits, load=self.load)
        return captioner_pb2.CaptionerServiceInfoResponse(service=service, image_size=size)

    @property
    def load(self) -> Load:
        """Pictures being decoded or captioned, and for how many there is room."""
        load = Load(self._decoding.depth, self._decoding.capacity)
        if not self._releases.names:
            return load
        with self._releases.lease() as held:
            batcher = held.model.batcher
            return Load(load.depth + batcher.depth, load.capacity + batcher.capacity)

    async def _look(
        self, model: CaptionerModel, source: image_pb2.ImageSource, deadline: float | None
    ) -> Look:
        def looks() -> Generator[Look, None, None]:
            yield model.look(image_bytes(source), self._limits)

        async with aclosing(self._decoding.run(looks, deadline=deadline)) as found:
            looked = [look async for look in found]
        return looked[0]
