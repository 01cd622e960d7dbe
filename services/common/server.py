"""The base of every server: health, reflection, limits, TLS, metrics, traces, a port of its own, a graceful end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.interceptors import CallInterceptor
from services.common.security import server_credentials
from services.common.settings import ServerSettings
from services.common.telemetry import tracing
from services.common.telemetry.metrics import Endpoint, Metrics
from vlmir.errors import UnavailableError
from vlmir.image import Limits

__all__ = ["ALIVE", "Server", "max_message_bytes", "stop_on_signals"]

log = logging.getLogger("vlmir.server")

ALIVE = "alive"
"""Name under which health is SERVING as long as the process answers, so that nobody restarts one that only waits."""

# Room beside the picture for options, ids and framing. A picture slightly too big still gets
# through to the library, whose error tells the limit.
_MARGIN = 1 << 20
# Calls beyond the work queue: Info, health checks, and those on their way to being refused.
_SPARE_CALLS = 64


def max_message_bytes(limits: Limits) -> int:
    """The largest request message under ``limits``; gRPC refuses more before it is read."""
    return limits.max_bytes + _MARGIN


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


class Server:
    """A grpc.aio server for some services.

    Args:
        services: Full names of the services, for health and reflection.
        register: Adds the servicers to the server.
        settings: Address, certificates, queue and grace.
        limits: Of the pictures in requests; they bound the messages.
        metrics: Where calls are counted, and what else is shown at ``--metrics-port``.
        interceptors: Around all others, such as one that lets in only who may.
    """

    def __init__(
        self,
        services: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
        *,
        settings: ServerSettings,
        limits: Limits,
        metrics: Metrics | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._services, self._settings = services, settings
        self._metrics = metrics or Metrics()
        self._endpoint: Endpoint | None = None
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(
            interceptors=[*interceptors, CallInterceptor(self._metrics)],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes(limits)),
                ("grpc.max_send_message_length", -1),
                # Without this a second server shares the port in silence, and callers reach either.
                ("grpc.so_reuseport", 0),
                # The shortest `keepalive_s` of a channel; gRPC would hang up on who asks more than every five minutes.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                *_renewal(settings.renew_s),
            ],
            maximum_concurrent_rpcs=settings.workers + settings.queue + _SPARE_CALLS,
        )
        register(self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._grpc)

    async def start(self, *, serving: bool = True) -> str:
        """Listen, report SERVING, and return the address ``host:port``.

        Args:
            serving: False to report NOT_SERVING until :meth:`set_serving` says otherwise.

        Raises:
            UnavailableError: the port or that for metrics is taken, or the host is none of this machine's.
            OptionError: the certificates are unfit.
        """
        port = self._listen()
        if self._settings.metrics_port is not None:
            self._endpoint = self._metrics.serve(self._settings.host, self._settings.metrics_port)
            log.info("metrics on http://%s/metrics", self._endpoint.address)
        tracing.start(_process_name(self._services[0]))
        await self._grpc.start()
        await self._health.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
        await self.set_serving(serving)
        return f"{self._settings.host}:{port}"

    @property
    def metrics_address(self) -> str | None:
        """Where Prometheus may read, ``host:port``, while the server runs; None if nowhere."""
        return self._endpoint.address if self._endpoint else None

    def _listen(self) -> int:
        address = f"{self._settings.host}:{self._settings.port}"
        credentials = server_credentials(self._settings)
        try:
            if credentials is None:
                return self._grpc.add_insecure_port(address)
            return self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {address}; choose another port, or 0 for a free one"
            ) from error

    async def set_serving(self, serving: bool) -> None:
        """Report SERVING or NOT_SERVING; without effect once it is stopping."""
        status = health_pb2.HealthCheckResponse
        # The empty name is the whole server, for which probes ask by default.
        for name in ("", *self._services):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self) -> None:
        """Report NOT_SERVING, let running calls end within the grace, cancel what is left, send traces that wait."""
        log.info("stopping: no new calls, running ones have %.0f s", self._settings.grace_s)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_s)
        await self._grpc.stop(self._settings.grace_s)
        await asyncio.to_thread(tracing.flush)
        if self._endpoint:
            await asyncio.to_thread(self._endpoint.close)
        log.info("stopped")


def _renewal(after_s: float) -> list[tuple[str, int]]:
    return [("grpc.max_connection_age_ms", round(after_s * 1e3))] if after_s else []


def _process_name(service: str) -> str:
    """``vlmir.v1.SamplerService`` → ``vlmir-sampler``."""
    return "vlmir-" + service.rpartition(".")[2].removesuffix("Service").lower()
