"""The methods of the gRPC server that Ray Serve puts before the replicas, as a Serve config names them.

Ray 2.60 hears that a stream's caller has gone only while it waits for the replica's next reply; while it passes one on
to the caller, the news is lost, and the replica goes on for nobody. So here Ray is made to wait once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias

from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from ray.serve._private.grpc_util import gRPCGenericServer

from vlmir.v1.restorer_pb2_grpc import add_RestorerServiceServicer_to_server

__all__ = ["add_health", "add_restorer", "heeding"]

Handler: TypeAlias = Callable[[Any, Any], Any]


def add_restorer(servicer: Any, server: gRPCGenericServer) -> None:
    """The restorer's methods."""
    _add(add_RestorerServiceServicer_to_server, servicer, server)


def add_health(servicer: Any, server: gRPCGenericServer) -> None:
    """The methods of gRPC's health service."""
    _add(add_HealthServicer_to_server, servicer, server)


def _add(add: Callable[[Any, Any], None], servicer: Any, server: gRPCGenericServer) -> None:
    make = server.service_handler_factory

    def made(**about: Any) -> Handler:
        handler = make(**about)
        return heeding(handler) if inspect.isasyncgenfunction(handler) else handler

    server.service_handler_factory = made
    try:
        add(servicer, server)
    finally:
        server.service_handler_factory = make


def heeding(handler: Handler) -> Handler:
    """A handler of streams that hears in any case when its caller goes.

    Args:
        handler: Gives the replies to a request and a context; it hears of an end only where it waits for the next one.
    """

    # A generator would not do: where its caller goes while a reply is sent, nobody closes it.
    async def stream(request: Any, context: Any) -> None:
        replies = handler(request, context)
        try:
            async for reply in replies:
                await context.write(reply)
        except BaseException:  # what a failed `write` raises depends on the moment
            await _whatever_comes(asyncio.create_task(_tell(replies)))
            raise

    return stream


async def _tell(replies: AsyncGenerator[Any, None]) -> None:
    """Cancel what makes the replies where it waits for the next one; no effect on what has ended."""
    waiting = asyncio.ensure_future(anext(replies, None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])


async def _whatever_comes(task: asyncio.Task[None]) -> None:
    """Return when a short task is done: gRPC may cancel a call after its `write` has failed."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
