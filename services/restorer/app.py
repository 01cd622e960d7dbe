"""The restorer on Ray Serve: replicas that orchestrate the captioner, the embedder and the sampler.

Run ``serve run deploy/serve.yaml``, or name ``services.restorer.app:build`` in a Serve config of your own. Settings are
``VLMIR_…`` variables in the environment of Ray, or ``args`` of the application; the store's are variables only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from grpc_health.v1 import health_pb2
from pydantic import ValidationError
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext

from services.common.calls import Context, Sized, served
from services.common.parcels import Parcels
from services.common.store import StoreSettings, make_store
from services.common.telemetry import tracing
from services.common.telemetry.logs import configure_logging
from services.common.telemetry.meters import Meters
from services.common.work import WorkQueue
from services.restorer.cluster import Cluster
from services.restorer.cluster_servicer import ClusterServicer
from services.restorer.meters import RestorationMeters
from services.restorer.ray_instruments import RayInstruments
from services.restorer.serve_context import ServeContext
from services.restorer.settings import ClusterSettings
from vlmir.errors import OptionError
from vlmir.v1 import restorer_pb2

__all__ = ["RestorerReplica", "build"]

SERVICE = restorer_pb2.DESCRIPTOR.services_by_name["RestorerService"].full_name

_WATCH_S = 1.0


class RestorerReplica:
    """One replica. Its methods are the rpcs of ``RestorerService`` and of gRPC's health service, as Ray calls them.

    It starts without its store, too, and makes it ready once it answers.

    Args:
        settings: Of the replica.

    Raises:
        OptionError: Settings of the store or certificates are wrong.
        UnavailableError: The store's package is not installed.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        configure_logging(settings.log_level, settings.log_format)
        tracing.start("vlmir-restorer")
        storing = StoreSettings.from_environment()
        instruments = RayInstruments()
        self._meters = Meters(instruments)
        store = make_store(storing)
        self._cluster = Cluster(settings, Parcels(store, above=storing.tensors_above))
        self._work = WorkQueue(workers=settings.workers, waiting=settings.queue)
        self._servicer = ClusterServicer(
            self._cluster,
            self._work,
            limit_s=settings.limit_s,
            store=store,
            link_s=storing.link_s,
            meters=RestorationMeters(instruments),
        )

    async def Restore(
        self, request: restorer_pb2.RestoreRequest, grpc_context: RayServegRPCContext
    ) -> restorer_pb2.RestoreResponse:
        """Restore one picture."""
        async with self._served("Restore", request, grpc_context) as context:
            return await self._servicer.Restore(request, context)

    async def RestoreStream(
        self, request: restorer_pb2.RestoreStreamRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[restorer_pb2.RestoreStreamResponse, None]:
        """Restore one picture, progress first."""
        async with (
            self._served("RestoreStream", request, grpc_context) as context,
            aclosing(self._servicer.RestoreStream(request, context)) as replies,
        ):
            async for reply in replies:
                yield reply

    async def CreateUpload(
        self, request: restorer_pb2.CreateUploadRequest, grpc_context: RayServegRPCContext
    ) -> restorer_pb2.CreateUploadResponse:
        """Give a link to upload a picture by."""
        async with self._served("CreateUpload", request, grpc_context) as context:
            return await self._servicer.CreateUpload(request, context)

    async def GetResult(
        self, request: restorer_pb2.GetResultRequest, grpc_context: RayServegRPCContext
    ) -> restorer_pb2.GetResultResponse:
        """Give the result of an earlier request."""
        async with self._served("GetResult", request, grpc_context) as context:
            return await self._servicer.GetResult(request, context)

    async def Info(
        self, request: restorer_pb2.RestorerServiceInfoRequest, grpc_context: RayServegRPCContext
    ) -> restorer_pb2.RestorerServiceInfoResponse:
        """Say what is being served."""
        async with self._served("Info", request, grpc_context) as context:
            return await self._servicer.Info(request, context)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthCheckResponse:
        """SERVING while a picture could be restored."""
        return await self._health(request)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Health now, and whenever it changes. Each watcher takes a place among the calls of a replica."""
        last: int | None = None
        while True:
            health = await self._health(request)
            if health.status != last:
                last = health.status
                yield health
            await asyncio.sleep(_WATCH_S)

    async def check_health(self) -> None:
        """Tells Ray that the event loop runs.

        Services that are down are no reason to replace a replica: the next would find them no better. They show in
        :meth:`Check`.
        """

    async def _health(
        self, request: health_pb2.HealthCheckRequest
    ) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse
        if request.service not in ("", SERVICE):
            return health_pb2.HealthCheckResponse(status=status.SERVICE_UNKNOWN)
        ready = await self._servicer.is_ready()
        return health_pb2.HealthCheckResponse(
            status=status.SERVING if ready else status.NOT_SERVING
        )

    @asynccontextmanager
    async def _served(
        self, name: str, request: Sized, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Context]:
        context = cast(Context, ServeContext(grpc_context))
        async with served(f"/{SERVICE}/{name}", request, context, self._meters):
            yield context


# As much as there is for a machine with two processors; deploy/serve.yaml says more, and wins.
restorer = serve.deployment(
    name="restorer",
    max_ongoing_requests=32,
    max_queued_requests=64,
    max_surge_percent=100,
    graceful_shutdown_timeout_s=120,
    health_check_period_s=5,
    health_check_timeout_s=15,
)(RestorerReplica)


def build(args: dict[str, Any]) -> serve.Application:
    """The application, as a Serve config names it.

    Args:
        args: Settings that win over the environment.

    Raises:
        OptionError: A setting is wrong.
    """
    unknown = sorted(set(args) - set(ClusterSettings.model_fields))
    if unknown:
        raise OptionError(f"Unknown settings: {', '.join(unknown)}.")
    try:
        settings = ClusterSettings.model_validate(args)
    except ValidationError as error:
        fault = error.errors()[0]
        raise OptionError(f"{fault['loc'][0]}: {fault['msg']}") from error
    return restorer.bind(settings)
