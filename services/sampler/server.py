"""The sampler as a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch

from services.common.health import watched
from services.common.parcels import Parcels
from services.common.releases import Releases
from services.common.server import Server, stop_on_signals
from services.common.store import StoreSettings, make_store
from services.common.telemetry.gpu import observe_gpu
from services.common.telemetry.metrics import Metrics
from services.common.weights import observe_releases, weights
from services.sampler.batcher import Batcher
from services.sampler.budget import Budget
from services.sampler.model import load_model, warm_up
from services.sampler.servicer import SamplerServicer
from services.sampler.settings import SamplerSettings
from vlmir.compute import Compute
from vlmir.image import Limits
from vlmir.sampling import DiffusionSampler
from vlmir.v1 import sampler_pb2
from vlmir.v1.sampler_pb2_grpc import add_SamplerServiceServicer_to_server

__all__ = ["SERVICE", "running", "serve"]

SERVICE = sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].full_name


@asynccontextmanager
async def running(
    settings: SamplerSettings, stop: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """Load the weights and serve while the block runs, which gets the address; then drain.

    Args:
        settings: What is served, and where.
        stop: Ends the wait for the weights.

    Raises:
        BundleError: The bundle is missing or broken.
        OptionError: Settings of the store are wrong, or the device cannot be used.
        UnavailableError: The port is taken.
    """
    limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    storing = StoreSettings.from_environment()
    parcels = Parcels(make_store(storing), above=storing.tensors_above)
    compute = Compute.choose(settings.device, settings.precision)
    async with weights(
        settings,
        part="sampler",
        load=partial(load_model, compute=compute),
        warm_up=warm_up,
        stop=stop,
    ) as releases:
        budget = _budget(settings, compute)
        batcher = Batcher(
            active=settings.workers,
            waiting=settings.queue,
            pixels=settings.batch_pixels,
            room=budget.room(settings.max_pixels),
        )
        servicer = SamplerServicer(
            releases,
            batcher,
            limits=limits,
            max_window=settings.max_window,
            budget=budget,
            limit_s=settings.limit_s,
            parcels=parcels,
            device=str(compute),
        )
        server = Server(
            [SERVICE],
            lambda server: add_SamplerServiceServicer_to_server(servicer, server),
            settings=settings,
            limits=limits,
            metrics=_metrics(releases, batcher, budget),
        )

        async def check() -> None:
            batcher.check()
            with releases.lease():
                pass

        try:
            async with watched(server, check) as address:
                names = releases.names
                print(f"serving {names[0] if names else 'nothing yet'} on {address}", flush=True)
                yield address
        finally:
            # While the loop still runs: who still waits is told.
            await asyncio.to_thread(batcher.close)


def _budget(settings: SamplerSettings, compute: Compute) -> Budget:
    """What is free now that the weights are there."""
    given = None if settings.memory_mib is None else settings.memory_mib * 2**20
    return Budget.of(compute.device, call_pixels=settings.batch_pixels, given=given)


def _metrics(releases: Releases[DiffusionSampler], batcher: Batcher, budget: Budget) -> Metrics:
    metrics, stats = Metrics(), batcher.stats
    metrics.observe("queue_depth", "Pictures admitted.", lambda: batcher.depth)
    metrics.observe("queue_capacity", "Pictures admitted at most.", lambda: batcher.capacity)
    metrics.observe("active_pictures", "Pictures under way.", lambda: batcher.active)
    metrics.observe(
        "room_pixels", "Pixels of big pictures under way at most.", lambda: batcher.room
    )
    metrics.observe(
        "memory_budget_bytes",
        "Memory for pictures and network calls where the network runs; 0: unknown.",
        lambda: budget.network or 0,
    )
    # As of the other services' batches: the mean over a while is items over batches.
    window = {"kind": "window"}
    metrics.observe("batches_total", "Network calls.", lambda: stats.batches, **window)
    metrics.observe("batch_items_total", "Windows in them.", lambda: stats.windows, **window)
    metrics.observe("batch_mean_windows", "Windows in a call.", lambda: stats.mean_windows)
    metrics.observe("steps_total", "Evaluations of whole pictures.", lambda: stats.steps)
    # Their quotient is what a megapixel costs, from which deploy.sizing reckons.
    metrics.observe(
        "network_seconds_total", "Seconds spent in network calls.", lambda: stats.seconds
    )
    metrics.observe("network_pixels_total", "Pixels of the windows.", lambda: stats.pixels)
    metrics.observe("batch_retries_total", "Calls that failed.", lambda: stats.retries)
    observe_releases(metrics, releases)
    observe_gpu(metrics, torch.cuda)
    return metrics


async def serve(settings: SamplerSettings) -> None:
    """Serve until SIGTERM or SIGINT; errors are those of :func:`running`."""
    stop = stop_on_signals()
    async with running(settings, stop):
        await stop.wait()
