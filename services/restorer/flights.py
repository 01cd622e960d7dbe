"""Computations under way in this process: whoever asks for the same joins the one that there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from services.common.batching import until
from vlmir.errors import DeadlineError, RestorationCancelled

__all__ = ["Flights"]

T = TypeVar("T")


class _End:
    """The last item of an inbox."""


_END = _End()


class _Flight(Generic[T]):
    """One computation in a task of its own, so that no caller's end is its end while others listen."""

    def __init__(self, items: AsyncGenerator[T, None], forget: Callable[[], None]) -> None:
        self._inboxes = set[asyncio.Queue[T | _End]]()
        self._latest: T | _End = _END
        self._forget = forget
        self._task = asyncio.create_task(self._fly(items))
        self._task.add_done_callback(self._land)

    async def listen(self, deadline: float | None) -> AsyncGenerator[T, None]:
        """What it yielded last, what it yields from now on, then its error if it fails.

        When the last listener goes, it is cancelled.
        """
        inbox = asyncio.Queue[T | _End]()
        self._inboxes.add(inbox)
        # Who joins after the last item must have it, too.
        if not isinstance(self._latest, _End):
            inbox.put_nowait(self._latest)
        if self._task.done():
            self._forget()  # already, lest who begins anew finds it again
            inbox.put_nowait(_END)
        try:
            while True:
                item = await _next(inbox, deadline)
                if isinstance(item, _End):
                    self._task.result()
                    return
                yield item
        finally:
            self._inboxes.discard(inbox)
            if not self._inboxes and not self._task.done():
                self._forget()
                self._task.cancel()

    async def _fly(self, items: AsyncGenerator[T, None]) -> None:
        async with aclosing(items):
            async for item in items:
                self._latest = item
                for inbox in self._inboxes:
                    inbox.put_nowait(item)

    def _land(self, task: asyncio.Task[None]) -> None:
        self._forget()
        if not task.cancelled():
            task.exception()  # looked at, even where nobody listens any more
        for inbox in self._inboxes:
            inbox.put_nowait(_END)


async def _next(inbox: asyncio.Queue[T | _End], deadline: float | None) -> T | _End:
    """What is there already is taken even when the time is over."""
    if not inbox.empty():
        return inbox.get_nowait()
    async with until(deadline):
        return await inbox.get()


class Flights(Generic[T]):
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def join(
        self,
        key: str,
        start: Callable[[], AsyncGenerator[T, None]],
        *,
        deadline: float | None,
    ) -> AsyncGenerator[T, None]:
        """Yield what the computation of ``key`` yielded last, if anything, and what it yields from now on.

        It goes on until the last who listens has gone. If it ends because the time of whoever began it is over, it
        begins anew for those who have more.

        Args:
            key: Names the computation.
            start: Makes it, if it is not under way.
            deadline: Reading of ``time.monotonic`` after which to listen no longer, or None.

        Raises:
            DeadlineError: The deadline passed.
            Exception: What the computation raised.
        """
        while True:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._begin(key, start)
            try:
                async with aclosing(flight.listen(deadline)) as items:
                    async for item in items:
                        yield item
                return
            except (DeadlineError, RestorationCancelled):
                if leads or (deadline is not None and time.monotonic() >= deadline):
                    raise

    def _begin(self, key: str, start: Callable[[], AsyncGenerator[T, None]]) -> _Flight[T]:
        def forget() -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight = _Flight(start(), forget)
        self._flights[key] = flight
        return flight
