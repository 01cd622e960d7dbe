"""When to give up a call."""

from __future__ import annotations

import time
from typing import Any, Protocol, cast

import grpc

__all__ = ["Budgeted", "deadline_of"]


class Budgeted(Protocol):
    """A request that says how much of its caller's time is left."""

    time_budget_ms: int

    def HasField(self, field_name: Any) -> bool:
        """Whether an optional field is set."""


def deadline_of(
    request: Budgeted, context: grpc.aio.ServicerContext[Any, Any], *, limit_s: float
) -> float | None:
    """The soonest of the server's limit, the call's deadline and the request's budget.

    Args:
        request: Carries the budget, where the caller's deadline cannot be seen.
        context: Of the call.
        limit_s: Seconds the server grants; 0 for no limit.

    Returns:
        A reading of ``time.monotonic``, or None where there is no limit.
    """
    # None without a deadline, whatever the type stubs say.
    remaining = cast(float | None, context.time_remaining())
    budgets = [seconds for seconds in (limit_s or None, remaining) if seconds is not None]
    if request.HasField("time_budget_ms"):
        budgets.append(request.time_budget_ms / 1e3)
    return time.monotonic() + min(budgets) if budgets else None
