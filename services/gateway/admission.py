"""Lets in calls that bring a token; the others are refused before their message is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from services.common.calls import Context, caller, served
from services.common.errors import UnauthenticatedError
from services.common.telemetry.metrics import Metrics
from services.gateway.messages import Passed
from services.gateway.tokens import Tokens

__all__ = ["TokenInterceptor"]

# Not Watch: a call that lasts holds a place for as long as it likes.
_OPEN = "/grpc.health.v1.Health/Check"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Asks every call for a token, except single health checks, whose callers seldom can have one.

    Args:
        tokens: Those that let in.
        metrics: Where refused calls are counted.
    """

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens, self._metrics = tokens, metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of the call, or one that refuses it."""
        method = handler_call_details.method
        if method == _OPEN:
            return await continuation(handler_call_details)
        sent = [
            value
            for key, value in handler_call_details.invocation_metadata
            if key == "authorization"
        ]
        try:
            name = self._tokens.name(str(sent[0]) if sent else None)
        except UnauthenticatedError as error:
            known = await continuation(handler_call_details) is not None
            return self._refusal(method, error) if known else None
        caller.set(name)
        return await continuation(handler_call_details)

    def _refusal(self, method: str, why: UnauthenticatedError) -> Handler:
        # As for a stream of requests: gRPC then does not wait for the message.
        async def refuse(_: Any, context: Context) -> None:
            async with served(method, Passed(b""), context, self._metrics):
                raise why

        return grpc.stream_unary_rpc_method_handler(refuse)
