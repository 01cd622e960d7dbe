"""The sampling service over a `Batcher`: it only translates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from services.common.deadlines import deadline_of
from services.common.info import Load, service_info
from services.common.parcels import Parcels
from services.common.releases import Releases
from services.common.tensors import Array, to_message
from services.common.wire import preview_message
from services.sampler.batcher import Batcher
from services.sampler.budget import Budget
from services.sampler.job import Sampled, Task
from services.sampler.requests import check_size, task_of
from services.sampler.traits import traits
from vlmir.diffusion import SOLVERS
from vlmir.image import Limits
from vlmir.sampling import DiffusionSampler, SampleStep
from vlmir.v1 import image_pb2, sampler_pb2
from vlmir.v1.sampler_pb2_grpc import SamplerServiceServicer

__all__ = ["SamplerServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Reply: TypeAlias = sampler_pb2.SampleResponse


class SamplerServicer(SamplerServiceServicer):
    """Answers ``Sample`` and ``Info``; errors are left to the interceptor.

    Args:
        releases: The weights that may answer.
        batcher: Where pictures are sampled.
        limits: What pictures are accepted.
        max_window: Most pixels of a tile.
        budget: The memory that pictures must fit.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
        parcels: Fetches pixels that lie in a store; the results of such requests go the same way.
        device: Where it computes, and in which precision; for people to read.
    """

    def __init__(
        self,
        releases: Releases[DiffusionSampler],
        batcher: Batcher,
        *,
        limits: Limits,
        max_window: int,
        budget: Budget,
        limit_s: float,
        parcels: Parcels,
        device: str,
    ) -> None:
        self._releases, self._batcher = releases, batcher
        self._limits, self._max_window, self._limit_s = limits, max_window, limit_s
        self._budget, self._parcels, self._device = budget, parcels, device

    async def Sample(
        self, request: sampler_pb2.SampleRequest, context: Context
    ) -> AsyncGenerator[Reply, None]:
        """Restore one array of pixels, progress first; closing the stream cancels."""
        deadline = deadline_of(request, context, limit_s=self._limit_s)
        self._batcher.check_room(check_size(request.pixels, self._limits))
        with self._releases.lease(request.release) as held:
            # In a thread of its own: so many numbers take a while to look at.
            task = await asyncio.to_thread(
                task_of,
                request,
                held.model,
                max_window=self._max_window,
                budget=self._budget,
                parcels=self._parcels,
            )
            by_uri = request.pixels.WhichOneof("content") == "uri"
            pack = self._parcels.send if by_uri else to_message
            events = self._batcher.run(task, previews=request.previews, deadline=deadline)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Sampled):
                        result = await asyncio.to_thread(_result, event, task, held.release, pack)
                        yield Reply(result=result)
                    else:
                        yield Reply(progress=await _progress(event, task))

    async def Info(
        self, request: sampler_pb2.SamplerServiceInfoRequest, context: Context
    ) -> sampler_pb2.SamplerServiceInfoResponse:
        """Say what is being served, or what a release that is held is like."""
        if not (self._releases.names or request.release):
            return sampler_pb2.SamplerServiceInfoResponse(service=self._service(), solvers=SOLVERS)
        with self._releases.lease(request.release) as held:
            info = traits(held.model)
            info.service.CopyFrom(self._service(held.release))
            info.labels.extend(held.labels)
            info.takes_uris = self._parcels.has_store
            # A release names the three parts that were trained for one another.
            info.embedder_release = held.release
            info.captioner_release = held.release if "captioner" in held.digests else ""
            return info

    def _service(self, release: str = "") -> image_pb2.ServiceInfo:
        return service_info(
            self._releases,
            device=self._device,
            limits=self._limits,
            load=Load(self._batcher.depth, self._batcher.capacity),
            release=release,
        )


async def _progress(event: SampleStep, task: Task) -> image_pb2.Progress:
    message = image_pb2.Progress(step=event.step, steps=task.plan.evaluations, share=event.share)
    if event.x0 is not None:
        pixels = event.x0[0].permute(1, 2, 0).numpy()
        message.preview.CopyFrom(await asyncio.to_thread(preview_message, pixels))
    return message


def _result(
    done: Sampled, task: Task, release: str, pack: Callable[[Array], image_pb2.Tensor]
) -> sampler_pb2.SampleResult:
    _, height, width = done.pixels.shape
    windows = task.sampler.tile_plan(height, width, task.plan.tile).windows
    tiled = len(windows) > 1
    return sampler_pb2.SampleResult(
        pixels=pack(done.pixels),
        release=release,
        solver=task.plan.solver,
        steps=task.plan.evaluations,
        tiles=len(windows),
        tile_size=max(windows[0].height, windows[0].width) if tiled else 0,
        milliseconds=done.milliseconds,
    )
