"""The gateway as a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import Field
from pydantic_settings import CliSuppress

from services.common.channels import connect
from services.common.health import watched
from services.common.server import Server, stop_on_signals
from services.common.settings import ChannelSettings, ServerSettings
from services.common.telemetry import tracing
from services.common.telemetry.metrics import Metrics
from services.gateway.admission import TokenInterceptor
from services.gateway.proxy import Proxy
from services.gateway.tokens import Tokens
from vlmir.errors import UnavailableError
from vlmir.image import Limits
from vlmir.v1 import restorer_pb2

__all__ = ["GatewaySettings", "running", "serve"]

SERVICE = restorer_pb2.DESCRIPTOR.services_by_name["RestorerService"]


class GatewaySettings(ChannelSettings, ServerSettings):
    """Stands in front of a restorer: TLS, tokens, deadlines and limits."""

    port: int = Field(50050, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    upstream: str = Field(
        description="Address of the restorer, host:port; only --tls-ca makes the way there TLS."
    )
    token_file: Path | None = Field(
        None,
        description="File of those who may call, each made by 'python -m services.gateway.tokens NAME'; without it, "
        "anyone may.",
    )
    # Ray Serve's proxy copies messages several times: a few at once are plenty.
    workers: int = Field(8, ge=1, description="Calls passed on side by side.")
    queue: int = Field(64, ge=0, description="Calls that may wait; one more is refused.")
    # Ray Serve hangs up on who asks more often than every five minutes.
    keepalive_s: float = Field(
        360.0, ge=10, description="Seconds of silence after which the connection is tried out."
    )
    health_s: float = Field(1.0, gt=0, description="Seconds between two looks at the restorer.")
    # The restorer looks at pictures; here they are bytes.
    max_pixels: CliSuppress[int] = Limits().max_pixels


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[tuple[str, Server]]:
    """Serve while the block runs, which gets address and server; then drain.

    Raises:
        OptionError: Certificates or tokens are unfit.
        UnavailableError: The port is taken.
    """
    tracing.start("vlmir-gateway")
    metrics = Metrics()
    tokens = Tokens(settings.token_file) if settings.token_file else None
    async with connect(settings.upstream, settings) as channel:
        proxy = Proxy(
            SERVICE,
            channel,
            side_by_side=settings.workers,
            waiting=settings.queue,
            limit_s=settings.limit_s,
        )
        metrics.observe(
            "queue_depth", "Calls inside, the waiting ones included.", lambda: proxy.depth
        )
        server = Server(
            [SERVICE.full_name],
            proxy.register,
            settings=settings,
            limits=Limits(max_bytes=settings.max_bytes),
            metrics=metrics,
            interceptors=[TokenInterceptor(tokens, metrics)] if tokens else [],
        )
        health = health_pb2_grpc.HealthStub(channel)

        async def check() -> None:
            await _check(health, settings)

        async with watched(server, check, every_s=settings.health_s) as address:
            yield address, server


async def _check(health: health_pb2_grpc.HealthStub, settings: GatewaySettings) -> None:
    request = health_pb2.HealthCheckRequest(service=SERVICE.full_name)
    try:
        reply = await health.Check(request, timeout=max(1.0, settings.health_s))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return  # Ray Serve counts health checks as calls: it is busy, and so alive
        raise UnavailableError(
            f"the restorer at {settings.upstream} does not answer: {error.code().name}"
        ) from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"the restorer at {settings.upstream} is not serving")


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT; errors are those of :func:`running`."""
    stop = stop_on_signals()
    async with running(settings) as (address, _):
        print(f"serving {settings.upstream} on {address}", flush=True)
        await stop.wait()
