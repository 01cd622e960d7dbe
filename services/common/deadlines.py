"""When to give up a call."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol, cast

import grpc

__all__ = ["Budgeted", "deadline_of", "timeout_within"]


class Budgeted(Protocol):
    """A request that says how much of its caller's time is left."""

    time_budget_ms: int

    def HasField(self, field_name: Any) -> bool:
        """Whether an optional field is set."""


def deadline_of(
    request: Budgeted | None, context: grpc.aio.ServicerContext[Any, Any], *, limit_s: float
) -> float | None:
    """The soonest of the server's limit, the call's deadline and the request's budget.

    Args:
        request: Carries the budget, where the caller's deadline cannot be seen; None: nothing carries one.
        context: Of the call.
        limit_s: Seconds the server grants; 0 for no limit.

    Returns:
        A reading of ``time.monotonic``, or None where there is no limit.
    """
    # None without a deadline, whatever the type stubs say.
    remaining = cast(float | None, context.time_remaining())
    budgets = [limit_s] if limit_s else []
    if remaining is not None:
        budgets.append(_rounded_down(remaining))
    if request is not None and request.HasField("time_budget_ms"):
        budgets.append(request.time_budget_ms / 1e3)
    return time.monotonic() + min(budgets) if budgets else None


def timeout_within(seconds: float) -> float:
    """The timeout of a call whose server is to see at most ``seconds`` left: below them by 1 %, or 2 ms."""
    return max(1e-3, _rounded_down(seconds) - 1e-3)


def _rounded_down(seconds: float) -> float:
    """What is left for certain: gRPC sends three digits of a timeout's milliseconds, rounded up."""
    milliseconds = max(0, math.floor(seconds * 1e3 + 1e-6))
    step: int = 10 ** max(0, len(str(milliseconds)) - 3)
    return (milliseconds - milliseconds % step) / 1e3
