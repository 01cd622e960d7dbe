"""The captioner as a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import Field

from services.captioner.cache import CaptionCache
from services.captioner.model import CaptionerModel, loader
from services.captioner.servicer import CaptionerServicer
from services.common.batching import BatchCounts, observe_batches
from services.common.health import watched
from services.common.releases import Releases
from services.common.server import Server, stop_on_signals
from services.common.settings import ServerSettings, WeightsSettings
from services.common.telemetry.metrics import Metrics
from services.common.weights import observe_releases, weights
from services.common.work import WorkQueue
from vlmir.image import Limits
from vlmir.v1 import captioner_pb2
from vlmir.v1.captioner_pb2_grpc import add_CaptionerServiceServicer_to_server

__all__ = ["SERVICE", "CaptionerSettings", "running", "serve"]

SERVICE = captioner_pb2.DESCRIPTOR.services_by_name["CaptionerService"].full_name


class CaptionerSettings(WeightsSettings, ServerSettings):
    """Captions pictures over gRPC."""

    workers: int = Field(2, ge=1, description="Pictures decoded side by side.")
    queue: int = Field(64, ge=0, description="Pictures that may wait; one more is refused.")
    batch: int = Field(16, ge=1, description="Pictures captioned together at most.")
    captions: int = Field(4096, ge=0, description="Captions remembered; 0 for none.")


@asynccontextmanager
async def running(
    settings: CaptionerSettings, stop: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """Load the weights and serve while the block runs, which gets the address; then drain.

    Args:
        settings: What is served, and where.
        stop: Ends the wait for the weights.

    Raises:
        BundleError: The bundle is missing or broken, or has no captioner.
        UnavailableError: The port is taken.
    """
    limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    counts, capacity = BatchCounts(), settings.workers + settings.queue
    load = loader(max_batch=settings.batch, capacity=capacity, counts=counts)
    async with weights(
        settings,
        part="captioner",
        load=load,
        warm_up=CaptionerModel.warm_up,
        free=CaptionerModel.close,
        stop=stop,
    ) as releases:
        decoding = WorkQueue(workers=settings.workers, waiting=settings.queue)
        cache = CaptionCache(settings.captions)
        servicer = CaptionerServicer(
            releases,
            decoding=decoding,
            cache=cache,
            limits=limits,
            limit_s=settings.limit_s,
        )
        server = Server(
            [SERVICE],
            lambda server: add_CaptionerServiceServicer_to_server(servicer, server),
            settings=settings,
            limits=limits,
            metrics=_metrics(servicer, releases, cache, counts),
        )

        async def check() -> None:
            with releases.lease():
                pass

        try:
            async with watched(server, check) as address:
                names = releases.names
                print(f"serving {names[0] if names else 'nothing yet'} on {address}", flush=True)
                yield address
        finally:
            await asyncio.to_thread(decoding.close)


def _metrics(
    servicer: CaptionerServicer,
    releases: Releases[CaptionerModel],
    cache: CaptionCache,
    counts: BatchCounts,
) -> Metrics:
    metrics = Metrics()
    metrics.observe("queue_depth", "Pictures admitted.", lambda: servicer.load.depth)
    observe_batches(metrics, counts, kind="image")
    metrics.observe("cache_hits_total", "Captions that were known.", lambda: cache.hits)
    metrics.observe("cache_misses_total", "Captions that were not known.", lambda: cache.misses)
    observe_releases(metrics, releases)
    return metrics


async def serve(settings: CaptionerSettings) -> None:
    """Serve until SIGTERM or SIGINT; errors are those of :func:`running`."""
    stop = stop_on_signals()
    async with running(settings, stop):
        await stop.wait()
