"""Passes calls on to the upstream, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_status import rpc_status

from services.common.batching import Admission, until
from services.common.calls import CALLER, TIME_BUDGET, Context, caller, request_id
from services.common.channels import time_budget_ms
from services.common.deadlines import deadline_of, timeout_within
from services.gateway.answers import answer
from services.gateway.messages import Passed, reader
from services.gateway.public import public

__all__ = ["Proxy"]

LONG = ("Restore", "RestoreStream")
"""Methods that compute; the others only look something up and do not wait behind them."""

_SHORT_AT_ONCE, _SHORT_WAITING = 16, 32
# Together they fit among the calls that a server has to spare beside its work queue.

PATIENCE_S = 3.0
"""Seconds that a call waits for an upstream that is away, such as while it is started anew: longer than a channel lets
pass between two attempts to reach it."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True)
class _Lane:
    """Calls that wait for one another."""

    admission: Admission
    turn: asyncio.Semaphore

    @asynccontextmanager
    async def entered(self, deadline: float | None) -> AsyncIterator[None]:
        """A turn, waited for until the deadline."""
        with self.admission():
            async with until(deadline):
                await self.turn.acquire()
            try:
                yield
            finally:
                self.turn.release()


def _lane(at_once: int, waiting: int) -> _Lane:
    return _Lane(Admission(at_once + waiting), asyncio.Semaphore(at_once))


class Proxy:
    """The methods of one service, answered by another server.

    A request is held once, until it is answered; replies are passed on as they come, and no faster than they are read.
    When the caller goes or its time is over, the upstream's call is cancelled.

    Args:
        service: Whose methods are passed on, unary and server-streaming ones.
        channel: To the upstream.
        side_by_side: Calls of long methods (:data:`LONG`) passed on at once.
        waiting: Such calls that may wait; one more is refused. Short methods have turns of their own.
        limit_s: Seconds a call may take, its wait included; 0 for no limit but the caller's.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        channel: grpc.aio.Channel,
        *,
        side_by_side: int,
        waiting: int,
        limit_s: float,
    ) -> None:
        self._service, self._channel, self._limit_s = service, channel, limit_s
        self._long = _lane(side_by_side, waiting)
        self._short = _lane(_SHORT_AT_ONCE, _SHORT_WAITING)

    @property
    def depth(self) -> int:
        """Calls inside, the waiting ones included."""
        return self._long.admission.depth + self._short.admission.depth

    def register(self, server: grpc.aio.Server) -> None:
        """Add the methods to a server."""
        handlers = {method.name: self._handler(method) for method in self._service.methods}
        generic = grpc.method_handlers_generic_handler(self._service.full_name, handlers)
        server.add_generic_rpc_handlers([generic])

    def _handler(self, method: MethodDescriptor) -> Handler:
        path = f"/{self._service.full_name}/{method.name}"
        lane = self._long if method.name in LONG else self._short
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(path, lane), reader(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(path, lane), reader(method))

    def _unary(self, path: str, lane: _Lane) -> Callable[[Passed, Context], Any]:
        call: Any = self._channel.unary_unary(path, request_serializer=_data)

        async def handle(request: Passed, context: Context) -> bytes:
            async with self._upstream(context, lane) as how:
                return cast(bytes, await call(request, **how))

        return handle

    def _stream(self, path: str, lane: _Lane) -> Callable[[Passed, Context], Any]:
        call: Any = self._channel.unary_stream(path, request_serializer=_data)

        async def handle(request: Passed, context: Context) -> AsyncGenerator[bytes, None]:
            async with self._upstream(context, lane) as how:
                replies = call(request, **how)
                try:
                    async for reply in replies:
                        yield cast(bytes, reply)
                finally:
                    replies.cancel()

        return handle

    @asynccontextmanager
    async def _upstream(self, context: Context, lane: _Lane) -> AsyncIterator[dict[str, Any]]:
        """A turn, with the arguments of the call to the upstream; its failure becomes the caller's status."""
        deadline = deadline_of(None, context, limit_s=self._limit_s)
        try:
            async with lane.entered(deadline):
                await self._reach(deadline)
                yield _granted(deadline)
        except grpc.aio.AioRpcError as error:
            status = public(answer(error, request_id.get()), request_id.get())
            rich = rpc_status.to_status(status)
            await context.abort(rich.code, rich.details, rich.trailing_metadata)

    async def _reach(self, deadline: float | None) -> None:
        """Wait a moment for the upstream where it is away; if it stays so, the call itself tells why."""
        with suppress(TimeoutError):
            async with until(deadline), asyncio.timeout(PATIENCE_S):
                await self._channel.channel_ready()


def _granted(deadline: float | None) -> dict[str, Any]:
    """Deadline and metadata for the upstream, which may not be able to see the deadline, nor who calls."""
    budget_ms, who = time_budget_ms(deadline), caller.get()
    metadata = grpc.aio.Metadata()
    if budget_ms is not None:
        metadata.add(TIME_BUDGET, str(budget_ms))
    if who:
        metadata.add(CALLER, who)
    return {
        "timeout": None if budget_ms is None else timeout_within(budget_ms / 1e3),
        "metadata": metadata,
    }


def _data(request: Passed) -> bytes:
    return request.data
