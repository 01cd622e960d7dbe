"""Streams through what stands before Ray's replicas: a real server, and a handler that hears as little as Ray's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

pytest.importorskip("ray")

from services.restorer.ingress import heeding


class Deaf:
    """Gives replies; hears that its caller has gone only while it waits for the next one to give."""

    def __init__(self, replies: Iterable[bytes], fault: Exception | None = None) -> None:
        self.heard = asyncio.Event()
        self.given = 0
        self._replies, self._fault = replies, fault

    async def __call__(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        for reply in self._replies:
            await self._wait(0.001)
            self.given += 1
            yield reply
        if self._fault is not None:
            raise self._fault
        if request == b"more":
            await self._wait(60)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.heard.set()
            raise


@asynccontextmanager
async def asked(deaf: Deaf, request: bytes = b"") -> AsyncIterator[Any]:
    """A call under way."""
    server = grpc.aio.server()
    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(heeding(deaf.__call__))}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            yield channel.unary_stream("/a.Service/Stream")(request)
    finally:
        await server.stop(None)


def run(test: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(limited())


def test_replies_are_passed_on() -> None:
    async def test() -> None:
        async with asked(Deaf([b"one", b"two"])) as call:
            assert [reply async for reply in call] == [b"one", b"two"]
            assert await call.code() is grpc.StatusCode.OK

    run(test)


def test_so_is_a_fault() -> None:
    async def test() -> None:
        async with asked(Deaf([b"one"], ValueError("a fault"))) as call:
            assert await call.read() == b"one"
            with pytest.raises(grpc.aio.AioRpcError, match="a fault"):
                await call.read()

    run(test)


def test_who_goes_while_a_reply_is_awaited_is_heard() -> None:
    async def test() -> None:
        deaf = Deaf([b"one"])
        async with asked(deaf, b"more") as call:
            assert await call.read() == b"one"
            call.cancel()
            await deaf.heard.wait()

    run(test)


def test_who_goes_while_a_reply_is_sent_is_heard() -> None:
    async def test() -> None:
        deaf = Deaf(itertools.repeat(bytes(16 << 20)))
        async with asked(deaf) as call:
            await call.read()
            given = 0
            while given != deaf.given:  # until no more fits between a server and who reads no more
                given = deaf.given
                await asyncio.sleep(0.3)
            call.cancel()
            await deaf.heard.wait()

    run(test)
