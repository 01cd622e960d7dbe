"""The embedder as a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.common.batching import BatchCounts, observe_batches
from services.common.health import watched
from services.common.releases import Releases
from services.common.server import Server, stop_on_signals
from services.common.telemetry.metrics import Metrics
from services.common.weights import observe_releases, weights
from services.embedder.model import BackendChoice, EmbedderModel, loader
from services.embedder.servicer import EmbedderServicer
from services.embedder.settings import EmbedderSettings
from vlmir.image import Limits
from vlmir.v1 import embedder_pb2
from vlmir.v1.embedder_pb2_grpc import add_EmbedderServiceServicer_to_server

if TYPE_CHECKING:  # only a server that uses Triton needs its client
    from services.embedder.triton import Triton

__all__ = ["SERVICE", "running", "serve"]

SERVICE = embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name


@asynccontextmanager
async def running(
    settings: EmbedderSettings, stop: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """Load the weights and serve while the block runs, which gets the address; then drain.

    Args:
        settings: What is served, and where.
        stop: Ends the wait for the weights.

    Raises:
        BundleError: The bundle or its ONNX files are missing or broken.
        OptionError: Triton is asked for without its address.
        UnavailableError: The port is taken, or Triton cannot be reached or lacks this embedder.
    """
    limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    counts = (BatchCounts(), BatchCounts())
    async with (
        _connection(settings) as triton,
        weights(
            settings,
            part="embedder",
            load=loader(_choice(settings, triton, counts)),
            warm_up=EmbedderModel.warm_up,
            free=EmbedderModel.close,
            stop=stop,
        ) as releases,
    ):
        servicer = EmbedderServicer(releases, limits=limits, limit_s=settings.limit_s)
        server = Server(
            [SERVICE],
            lambda server: add_EmbedderServiceServicer_to_server(servicer, server),
            settings=settings,
            limits=limits,
            metrics=_metrics(servicer, releases, counts),
        )

        async def check() -> None:
            with releases.lease() as held:
                await held.model.check()

        async with watched(server, check, every_s=settings.probe_s) as address:
            names = releases.names
            print(f"serving {names[0] if names else 'nothing yet'} on {address}", flush=True)
            yield address


async def serve(settings: EmbedderSettings) -> None:
    """Serve until SIGTERM or SIGINT; errors are those of :func:`running`."""
    stop = stop_on_signals()
    async with running(settings, stop):
        await stop.wait()


@asynccontextmanager
async def _connection(settings: EmbedderSettings) -> AsyncIterator[Triton | None]:
    if not settings.triton:
        yield None
        return
    from services.embedder.triton import Triton

    triton = Triton(settings.triton)
    try:
        yield triton
    finally:
        await triton.close()


def _metrics(
    servicer: EmbedderServicer,
    releases: Releases[EmbedderModel],
    counts: tuple[BatchCounts, BatchCounts],
) -> Metrics:
    metrics = Metrics()
    metrics.observe("queue_depth", "Requests admitted.", lambda: servicer.load.depth)
    for kind, count in zip(("image", "text"), counts, strict=True):
        observe_batches(metrics, count, kind=kind)
    observe_releases(metrics, releases)
    return metrics


def _choice(
    settings: EmbedderSettings, triton: Triton | None, counts: tuple[BatchCounts, BatchCounts]
) -> BackendChoice:
    return BackendChoice(
        name=settings.backend,
        triton=triton,
        patience_s=settings.triton_wait_s,
        onnx=settings.onnx,
        max_batch=settings.batch,
        capacity=settings.workers + settings.queue,
        counts=counts,
    )
