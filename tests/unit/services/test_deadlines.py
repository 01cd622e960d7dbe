"""How much of a caller's time is left, told by a real server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.deadlines import deadline_of, timeout_within


class _Context:
    """A call of which gRPC says that so many seconds are left."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def time_remaining(self) -> float | None:
        return self._seconds


def _left(seconds: float | None, limit_s: float = 0) -> float | None:
    context: Any = _Context(seconds)
    deadline = deadline_of(None, context, limit_s=limit_s)
    return None if deadline is None else deadline - time.monotonic()


@pytest.mark.parametrize(
    ("said", "sure"), [(5.008, 5.0), (0.3, 0.3), (30.04, 30.0), (119.9, 119.0), (4.995, 4.99)]
)
def test_what_grpc_rounded_up_is_taken_off(said: float, sure: float) -> None:
    assert _left(said) == pytest.approx(sure, abs=2e-3)


def test_the_limit_holds_and_may_be_none() -> None:
    assert _left(None) is None
    assert _left(None, 2) == pytest.approx(2, abs=2e-3)
    assert _left(9, 2) == pytest.approx(2, abs=2e-3)
    assert (_left(-1) or 0) <= 0


@given(st.floats(0.01, 5000))
def test_a_timeout_is_a_little_below_what_is_granted(seconds: float) -> None:
    assert 0 < seconds - timeout_within(seconds) <= max(2.1e-3, 0.0101 * seconds + 1e-3)


def test_a_server_sees_no_more_than_its_client_granted() -> None:
    seen: list[float] = []

    async def handle(request: bytes, context: Any) -> bytes:
        seen.append(context.time_remaining())
        return request

    async def scenario() -> None:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(handle)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a", {"b": handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/a/b")
            for _ in range(30):
                await call(b"", timeout=timeout_within(5))
        await server.stop(None)

    asyncio.run(scenario())
    assert len(seen) == 30 and min(seen) > 4.9 and max(seen) <= 5
