"""A call that Ray Serve passes on, seen as gRPC's own kind of call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.rpc.status_pb2 import Status
from ray.serve.grpc_util import RayServegRPCContext

from services.common.calls import TIME_BUDGET
from services.common.errors import to_details

__all__ = ["RefusedCall", "ServeContext"]

_STATUS = "grpc-status-details-bin"
_MOST_DIGITS = 12


class RefusedCall(Exception):
    """Ends a handler after the call's status was set; Ray sends that status, and nothing of this."""


class ServeContext:
    """What is used of ``grpc.aio.ServicerContext``.

    Ray hides the deadline: the time that is left is what the metadata ``vlmir-time-budget-ms`` grants.

    Args:
        context: Ray's.
    """

    def __init__(self, context: RayServegRPCContext) -> None:
        self._context = context
        budget = dict(self.invocation_metadata()).get(TIME_BUDGET, "")
        known = budget.isascii() and budget.isdigit() and len(budget) <= _MOST_DIGITS
        self._end = time.monotonic() + int(budget) / 1e3 if known else None

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        """What came with the call."""
        return [(key, value) for key, value in self._context.invocation_metadata()]

    def peer(self) -> str:
        """Who calls."""
        return self._context.peer()

    def time_remaining(self) -> float | None:
        """Seconds that are left; None where nothing was said."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def code(self) -> grpc.StatusCode | None:
        """The status that was set."""
        return self._context.code()

    def details(self) -> str:
        """The sentence that was set with it."""
        return self._context.details() or ""

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, Any]] = (),
    ) -> NoReturn:
        """End the call. Ray drops the metadata, so what they tell goes into the sentence.

        Raises:
            RefusedCall: Always.
        """
        rich = dict(trailing_metadata).get(_STATUS)
        status = Status.FromString(rich) if rich else Status(code=code.value[0], message=details)
        self._context.set_code(code)
        self._context.set_details(to_details(status))
        raise RefusedCall(details)
