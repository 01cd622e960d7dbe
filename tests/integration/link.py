"""A slow network for tests: a TCP proxy on this machine that adds latency, and holds everything up when told to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Link", "slow_link"]

_CHUNK = 1 << 16
_UNDERWAY = 256
"""Chunks on the way in one direction; a real network holds no more than so many either."""
_LOOK_S = 0.01


class Link:
    """The way to a server. Its attributes may be changed at any time, from any thread.

    Args:
        target: Address of the server, ``host:port``.
    """

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self.address = ""
        """What to connect to in its place."""
        self.there_s = self.back_s = 0.0
        """Latency on the way to the server, and back."""
        self.hangs = False
        """Whether nothing gets through: no byte is lost, and nobody is told."""

    async def serve(self, ready: Callable[[], None], stop: threading.Event) -> None:
        """Listen at a free port until told to stop."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        ready()
        await asyncio.to_thread(stop.wait)
        server.close()

    async def _connected(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(to_near):
            far, to_far = await asyncio.open_connection(self._host, int(self._port))
            with contextlib.closing(to_far):
                await asyncio.wait(
                    [
                        asyncio.create_task(self._carry(near, to_far, lambda: self.there_s)),
                        asyncio.create_task(self._carry(far, to_near, lambda: self.back_s)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        latency_s: Callable[[], float],
    ) -> None:
        """Pass bytes on, each when its time has come; returns at their end."""
        underway = asyncio.Queue[tuple[float, bytes]](_UNDERWAY)

        async def take() -> None:
            data = b"begin"
            while data:
                try:
                    data = await source.read(_CHUNK)
                except ConnectionError:
                    data = b""
                await underway.put((time.monotonic() + latency_s(), data))

        taking = asyncio.create_task(take())
        try:
            while True:
                due, data = await underway.get()
                await asyncio.sleep(due - time.monotonic())
                while self.hangs:
                    await asyncio.sleep(_LOOK_S)
                if not data:
                    return
                sink.write(data)
                with contextlib.suppress(ConnectionError):
                    await sink.drain()
        finally:
            taking.cancel()


@contextmanager
def slow_link(target: str) -> Iterator[Link]:
    """A link to a server, in a thread while the block runs."""
    link, ready, stop = Link(target), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(link.serve(ready.set, stop)))
    thread.start()
    try:
        assert ready.wait(10)
        yield link
    finally:
        stop.set()
        thread.join(10)
