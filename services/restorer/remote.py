"""Calls to the other services on behalf of one request: its time, its cancellation, and what their failures mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import grpc
from grpc_status import rpc_status

from vlmir.client.failures import translated
from vlmir.errors import (
    DeadlineError,
    ReleaseError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)

__all__ = ["ReleaseGone", "Run", "Service"]

_LATE = "the time ran out; grant more of it, ask for fewer steps, or raise the server's limit"
_CANCELLED = "the restoration was cancelled"
# What gRPC itself says of a call whose server ended under it, or was never there.
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class ReleaseGone(VlmirError):
    """A service has given up the release that a request began with; the request must choose anew."""


class Cancellable(Protocol):
    """A call under way."""

    def cancel(self) -> Any:
        """End it."""


class Run:
    """One request on its way through the services.

    Its calls are made in a thread of its own; :meth:`cancel` may come from any, and comes at the end in any case.

    Args:
        deadline: Reading of ``time.monotonic`` after which to give up, or None.
    """

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._calls = set[Cancellable]()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled

    def left_s(self, most_s: float | None = None, *, share: float = 1.0) -> float | None:
        """Seconds that the next call may take; None for no limit.

        Args:
            most_s: The most to grant.
            share: Of what is left, the most to grant.

        Raises:
            DeadlineError: There are none.
        """
        if self._deadline is None:
            return most_s
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(_LATE)
        return min(left * share, left if most_s is None else most_s)

    def cancel(self) -> None:
        """End the calls under way, and begin no other."""
        with self._lock:
            self._cancelled = True
            for call in self._calls:
                call.cancel()

    def hold(self, call: Cancellable) -> None:
        """Let :meth:`cancel` reach a call from now on."""
        with self._lock:
            self._calls.add(call)
            if self._cancelled:
                call.cancel()

    @contextmanager
    def holding(self, call: Cancellable) -> Iterator[None]:
        """Let :meth:`cancel` reach a call while the block runs; it is ended on the way out."""
        self.hold(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.discard(call)
            call.cancel()  # without effect on one that has ended


class Service:
    """A service as one request calls it. A call lost with its server is made once more, if there is time.

    Args:
        name: In messages to users, such as ``sampler``.
        run: The request.
    """

    def __init__(self, name: str, run: Run) -> None:
        self._name, self._run = name, run

    def begin(
        self, method: Any, request: Any, *, most_s: float | None = None, share: float = 1.0
    ) -> Any:
        """A unary call under way, to be given to :meth:`ask`, where the arguments are explained, for its answer.

        Raises:
            DeadlineError: There is no time left.
        """
        call = method.future(request, timeout=self._run.left_s(most_s, share=share))
        self._run.hold(call)
        return call

    def ask(
        self,
        method: Any,
        request: Any,
        *,
        begun: Any = None,
        most_s: float | None = None,
        share: float = 1.0,
    ) -> Any:
        """The answer to a unary call.

        Args:
            method: Of a stub.
            request: Its message.
            begun: The first try, as :meth:`begin` made it; None: it is made now.
            most_s: Seconds it may take at most.
            share: Of the time that is left, the most it may take.

        Raises:
            VlmirError: It failed; see :meth:`_failure`.
        """
        for tries_left in (1, 0):
            try:
                left_s = self._run.left_s(most_s, share=share)
                call, begun = begun or method.future(request, timeout=left_s), None
                with self._run.holding(call):
                    return call.result()
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                self._check(error, tries_left)
        raise AssertionError("the last try ends with an answer or an error")

    def listen(self, method: Any, request: Any) -> Generator[Any, None, None]:
        """The replies to a server-streaming call; closing the generator cancels it.

        After a loss they begin anew.

        Raises:
            VlmirError: It failed; see :meth:`_failure`.
        """
        for tries_left in (1, 0):
            try:
                call = method(request, timeout=self._run.left_s())
                with self._run.holding(call):
                    yield from call
                    return
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                self._check(error, tries_left)

    def _check(self, error: Exception, tries_left: int) -> None:
        """Raise the error for a failed call, unless another try makes sense."""
        if not (tries_left and self._is_lost(error)):
            raise self._failure(error) from error

    def _is_lost(self, error: Exception) -> bool:
        if self._run.cancelled or not isinstance(error, grpc.Call):
            return False
        return error.code() in _LOST and not _is_named(error)

    def _failure(self, error: Exception) -> VlmirError:
        """The library's error for a failed call: the service's own, or in our words what gRPC says."""
        if self._run.cancelled or isinstance(error, grpc.FutureCancelledError):
            return RestorationCancelled(_CANCELLED)
        call = cast(grpc.Call, error)
        if not _is_named(call):
            if call.code() in _LOST:
                return UnavailableError(
                    f"The {self._name} cannot be reached at present; try again in a few seconds."
                )
            if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineError(_LATE)
        known = translated(cast(grpc.RpcError, error), f"the {self._name}")
        if isinstance(known, ReleaseError):
            return ReleaseGone(str(known))
        return known


def _is_named(call: grpc.Call) -> bool:
    """Whether the service itself gave the status; else it is gRPC's."""
    try:
        return rpc_status.from_call(call) is not None
    except ValueError:
        return False
