"""Channels against real servers: retries, reconnecting, and what goes with each call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from services.common.calls import REQUEST_ID, request_id
from services.common.channels import connect, connect_sync, time_budget_ms
from services.common.settings import ChannelSettings
from tests.unit.services.asking import SERVICE, Answering, a_request, serving
from vlmir.errors import DeadlineError, OverloadedError, UnavailableError
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

BIG = bytes(1 << 20)  # more than gRPC keeps for a second try unless told otherwise


class Flaky:
    """Fails some times before it answers."""

    def __init__(self, error: Exception, times: int) -> None:
        self._error, self._times = error, times
        self.calls = 0

    async def __call__(self, request: Any, context: Any) -> str:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return f"{len(request.image.data)} bytes"


async def ask(address: str, *, threads: bool, idempotent: list[str], method: str) -> str:
    def in_thread() -> str:
        with connect_sync(address, ChannelSettings(), idempotent=idempotent) as channel:
            reply = getattr(RestorerServiceStub(channel), method)(a_request(data=BIG), timeout=20)
            return str(
                (list(reply)[-1] if method == "RestoreStream" else reply).result.report.caption
            )

    if threads:
        return await asyncio.to_thread(in_thread)
    async with connect(address, ChannelSettings(), idempotent=idempotent) as channel:
        call = getattr(RestorerServiceStub(channel), method)(a_request(data=BIG), timeout=20)
        reply = [r async for r in call][-1] if method == "RestoreStream" else await call
        return str(reply.result.report.caption)


@pytest.mark.parametrize("method", ["Restore", "RestoreStream"])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("named", [SERVICE, f"{SERVICE}/{{}}"])
def test_what_may_be_called_twice_is_tried_again(method: str, threads: bool, named: str) -> None:
    flaky = Flaky(UnavailableError("busy with something else"), 2)

    async def scenario() -> str:
        async with serving(Answering(flaky)) as (address, _):
            names = [named.format(method)]
            return await ask(address, threads=threads, idempotent=names, method=method)

    assert asyncio.run(scenario()) == f"{len(BIG)} bytes"


@pytest.mark.parametrize(
    ("error", "idempotent"),
    [
        (UnavailableError("x"), []),
        (UnavailableError("x"), [f"{SERVICE}/Info"]),
        (OverloadedError("x", retry_after_s=0.1), [SERVICE]),
    ],
)
def test_nothing_else_is(error: Exception, idempotent: list[str]) -> None:
    flaky = Flaky(error, 1)

    async def scenario() -> None:
        async with serving(Answering(flaky)) as (address, _):
            with pytest.raises(grpc.RpcError):
                await ask(address, threads=False, idempotent=idempotent, method="Restore")

    asyncio.run(scenario())
    assert flaky.calls == 1


def test_a_restarted_service_is_found_again() -> None:
    async def scenario() -> float:
        async with serving(Answering()) as (address, _):
            channel = connect(address, ChannelSettings(), idempotent=[SERVICE])
            stub: Any = RestorerServiceStub(channel)
            await stub.Restore(a_request())
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Restore(a_request())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with serving(Answering(), port=int(address.rpartition(":")[2])):
            began = time.monotonic()
            await stub.Restore(a_request(), wait_for_ready=True, timeout=10)
            took = time.monotonic() - began
            await channel.close()
            return took

    assert asyncio.run(scenario()) < 4


class Counting:
    """Counts the calls it answers."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, request: Any, context: Any) -> str:
        self.calls += 1
        return "hello"


@pytest.mark.parametrize("threads", [False, True])
def test_several_servers_are_called_in_turn_and_the_dead_left_out(threads: bool) -> None:
    lasting, dying = Counting(), Counting()

    async def scenario() -> None:
        async with serving(Answering(lasting)) as (one, _), AsyncExitStack() as other:
            two, _ = await other.enter_async_context(serving(Answering(dying)))
            async with restoring(f"ipv4:{one},{two}", threads=threads) as restore:
                while not (lasting.calls and dying.calls):  # until both are connected
                    await restore()
                lasting.calls = dying.calls = 0
                for _ in range(6):
                    await restore()
                assert (lasting.calls, dying.calls) == (3, 3)
                await other.aclose()
                for _ in range(4):
                    await restore()
                assert (lasting.calls, dying.calls) == (7, 3)

    asyncio.run(scenario())


@asynccontextmanager
async def restoring(address: str, *, threads: bool) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """A channel of either kind, as a function that makes a call."""
    if threads:
        with connect_sync(address, ChannelSettings()) as channel:
            call: Any = RestorerServiceStub(channel).Restore
            yield lambda: asyncio.to_thread(call, a_request(), timeout=20)
    else:
        async with connect(address, ChannelSettings()) as aio:
            call = RestorerServiceStub(aio).Restore
            yield lambda: call(a_request(), timeout=20)


@pytest.mark.parametrize("threads", [False, True])
def test_the_request_id_goes_along(threads: bool) -> None:
    seen: list[str] = []

    async def note(request: Any, context: Any) -> str:
        seen.extend(str(v) for k, v in context.invocation_metadata() if k == REQUEST_ID)
        return request_id.get()

    async def scenario() -> list[str]:
        async with serving(Answering(note)) as (address, _):
            how: Any = {"threads": threads, "idempotent": [], "method": "Restore"}
            before = await ask(address, **how)
            request_id.set("r-5")
            return [before, await ask(address, **how)]

    without, with_id = asyncio.run(scenario())
    assert len(without) == 32 and with_id == "r-5"
    assert seen == ["r-5"]


def test_cancelling_a_stream_reaches_the_server() -> None:
    gone, said = asyncio.Event(), list[str]()

    async def answer(request: Any, context: Any) -> str:
        if not said:
            said.append("first")
            return said[0]
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            gone.set()
            raise
        return ""

    async def scenario() -> None:
        async with (
            serving(Answering(answer)) as (address, _),
            connect(address, ChannelSettings()) as channel,
        ):
            stub: Any = RestorerServiceStub(channel)
            call = stub.RestoreStream(a_request())
            assert (await call.read()).result.report.caption == "first"
            call.cancel()
            await asyncio.wait_for(gone.wait(), 10)

    asyncio.run(scenario())


def test_the_time_that_is_left() -> None:
    assert time_budget_ms(None) is None
    left = time_budget_ms(time.monotonic() + 2)
    assert left is not None and 1900 < left <= 2000
    assert time_budget_ms(time.monotonic() + 1e-4) == 1
    with pytest.raises(DeadlineError):
        time_budget_ms(time.monotonic() - 1)


@pytest.mark.parametrize(("renew_s", "connections"), [(0.0, 1), (0.2, 2)])
def test_callers_connect_anew_and_lose_no_call(renew_s: float, connections: int) -> None:
    async def peer(request: Any, context: Any) -> str:
        await asyncio.sleep(0.8)  # longer than a connection is new
        return str(context.peer())

    async def test() -> set[str]:
        async with (
            serving(Answering(peer), renew_s=renew_s) as (address, _),
            connect(address, ChannelSettings()) as channel,
        ):
            stub = RestorerServiceStub(channel)
            replies = [await stub.Restore(a_request()) for _ in range(2)]
            return {reply.result.report.caption for reply in replies}

    assert len(asyncio.run(test())) == connections
