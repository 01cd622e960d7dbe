"""Health that is tried out, for servers that run while they cannot answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from services.common.server import Server
from vlmir.errors import VlmirError

__all__ = ["watched"]

log = logging.getLogger("vlmir.health")


@contextlib.asynccontextmanager
async def watched(
    server: Server, check: Callable[[], Awaitable[None]], *, every_s: float = 1.0
) -> AsyncIterator[str]:
    """Run a server while the block runs, which gets its address; report SERVING only while ``check`` raises nothing.

    At the end it is stopped gracefully.

    Args:
        server: Not yet started.
        check: Tries whether requests can be answered; raises a :class:`VlmirError` if not.
        every_s: Seconds between two trials.

    Raises:
        UnavailableError: The server cannot listen.
    """
    healthy = await _passes(check)
    address = await server.start(serving=healthy)
    watch = asyncio.create_task(_watch(server, check, every_s, healthy))
    try:
        yield address
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await server.stop()


async def _watch(
    server: Server, check: Callable[[], Awaitable[None]], every_s: float, healthy: bool
) -> None:
    while True:
        await asyncio.sleep(every_s)
        now = await _passes(check, quiet=not healthy)
        if now != healthy:
            healthy = now
            await server.set_serving(healthy)
            log.info("reporting %s", "SERVING" if healthy else "NOT_SERVING")


async def _passes(check: Callable[[], Awaitable[None]], *, quiet: bool = False) -> bool:
    try:
        await check()
    except Exception as error:
        if not quiet:
            unexpected = None if isinstance(error, VlmirError) else error
            log.warning("cannot answer requests: %s", error, exc_info=unexpected)
        return False
    return True
