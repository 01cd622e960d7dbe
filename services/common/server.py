"""The base of every server: health, reflection, limits, a port of its own, a graceful end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.interceptors import CallInterceptor
from services.common.settings import ServerSettings
from vlmir.errors import UnavailableError
from vlmir.image import Limits

__all__ = ["Server", "max_message_bytes", "stop_on_signals"]

log = logging.getLogger("vlmir.server")

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
        settings: Address, queue and grace.
        limits: Of the pictures in requests; they bound the messages.
    """

    def __init__(
        self,
        services: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
        *,
        settings: ServerSettings,
        limits: Limits,
    ) -> None:
        self._services, self._settings = services, settings
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(
            interceptors=[CallInterceptor()],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes(limits)),
                ("grpc.max_send_message_length", -1),
                # Without this a second server shares the port in silence, and callers reach either.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=settings.workers + settings.queue + _SPARE_CALLS,
        )
        register(self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._grpc)

    async def start(self) -> str:
        """Listen, report SERVING, and return the address ``host:port``.

        Raises:
            UnavailableError: the port is taken or the host is none of this machine's.
        """
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {address}; choose another port, or 0 for a free one"
            ) from error
        await self._grpc.start()
        for name in self._services:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return f"{self._settings.host}:{port}"

    async def stop(self) -> None:
        """Report NOT_SERVING, let running calls end within the grace, cancel what is left."""
        log.info("stopping: no new calls, running ones have %.0f s", self._settings.grace_s)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_s)
        await self._grpc.stop(self._settings.grace_s)
        log.info("stopped")
