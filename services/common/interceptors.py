"""Around every call: a request id, a span, metrics, one line in the log, errors turned into statuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from services.common.calls import Context, request_id, served
from services.common.telemetry.metrics import Metrics

__all__ = ["CallInterceptor", "request_id"]

_PROBES = ("/grpc.health.", "/grpc.reflection.")

# gRPC's handlers are generic over messages that only the generated code names.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps unary and server-streaming handlers; others (reflection's) pass untouched.

    Args:
        metrics: Where calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of one call, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            self._metrics.unknown()
            return None
        if handler.request_streaming or method.startswith(_PROBES):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Any) -> Any:
        async def handle(request: Any, context: Context) -> Any:
            async with served(method, request, context, self._metrics):
                return await behaviour(request, context)

        return handle

    def _stream(self, method: str, behaviour: Any) -> Any:
        # A coroutine that writes, no generator that yields: gRPC cancels the former where it stands,
        # the latter is left to the garbage collector, and the work behind it would go on till then.
        async def handle(request: Any, context: Context) -> None:
            async with (
                served(method, request, context, self._metrics),
                aclosing(behaviour(request, context)) as replies,
            ):
                async for reply in replies:
                    await context.write(reply)

        return handle
