"""The restorer as one process: all stages inside, no other service needed.

Run ``python -m services.restorer.embedded --port 50051 --bundle tiny``. Every flag can also be an
environment variable, such as ``VLMIR_PORT``; an object store is configured by ``VLMIR_STORE_…`` variables alone.
"""

from __future__ import annotations

import asyncio
import sys

from pydantic import Field

from services.common.main import run_service
from services.common.server import Server, stop_on_signals
from services.common.settings import ComputeSettings, ServerSettings
from services.common.store import Store, StoreSettings, open_store
from services.common.telemetry.metrics import Metrics
from services.common.work import WorkQueue
from services.restorer.meters import RestorationMeters
from services.restorer.servicer import RestorerServicer
from vlmir.image import Limits
from vlmir.pipeline import Restorer
from vlmir.v1 import restorer_pb2
from vlmir.v1.restorer_pb2_grpc import add_RestorerServiceServicer_to_server

__all__ = ["EmbeddedSettings", "main", "restorer_server", "serve"]

SERVICE = restorer_pb2.DESCRIPTOR.services_by_name["RestorerService"].full_name


class EmbeddedSettings(ComputeSettings, ServerSettings):
    """Restores pictures over gRPC, with all stages in this one process."""

    bundle: str = Field("tiny", description="Name of a shipped bundle, or the path of its folder.")


def restorer_server(
    restorer: Restorer,
    work: WorkQueue,
    settings: ServerSettings,
    *,
    store: Store | None = None,
    link_s: int = 3600,
) -> Server:
    """A server, not yet started, that answers for ``restorer``."""
    metrics = Metrics()
    metrics.observe("queue_depth", "Pictures admitted.", lambda: work.depth)
    metrics.observe_info("release", "The release in use.", lambda: {"release": restorer.release})
    servicer = RestorerServicer(
        restorer,
        work,
        limit_s=settings.limit_s,
        store=store,
        link_s=link_s,
        meters=RestorationMeters(metrics.instruments),
    )
    return Server(
        [SERVICE],
        lambda server: add_RestorerServiceServicer_to_server(servicer, server),
        settings=settings,
        limits=restorer.limits,
        metrics=metrics,
    )


async def serve(settings: EmbeddedSettings) -> None:
    """Load the bundle, serve until SIGTERM or SIGINT, then drain.

    Raises:
        BundleError: The bundle is missing or broken.
        OptionError: The store's settings are wrong.
        UnavailableError: The port is taken, or the store does not answer.
    """
    stop = stop_on_signals()
    storing = StoreSettings.from_environment()
    store = await asyncio.to_thread(open_store, storing)
    # In a thread, so that a signal is heard while the weights are loading.
    limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    restorer = await asyncio.to_thread(
        Restorer.load,
        settings.bundle,
        limits=limits,
        device=settings.device,
        precision=settings.precision,
    )
    work = WorkQueue(workers=settings.workers, waiting=settings.queue)
    server = restorer_server(restorer, work, settings, store=store, link_s=storing.link_s)
    address = await server.start()
    print(f"serving {restorer.release} on {address}", flush=True)
    await stop.wait()
    await server.stop()
    # While the loop still runs: a step under way wants to hand over its result.
    await asyncio.to_thread(work.close)


def main() -> int:
    """Run the command line; 0 after a graceful stop, 1 when it cannot serve, 2 for bad settings."""
    return run_service(EmbeddedSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
