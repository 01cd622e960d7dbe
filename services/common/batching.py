"""Requests that wait together are computed together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common.telemetry.metrics import Metrics
from vlmir.errors import DeadlineError, OverloadedError, UnavailableError

__all__ = ["Admission", "BatchCounts", "Batcher", "observe_batches", "until"]

log = logging.getLogger("vlmir.batches")

In = TypeVar("In")
Out = TypeVar("Out")


class Admission:
    """Counts the requests inside; refuses more than there is room for.

    It belongs to one event loop, and so needs no lock.

    Args:
        capacity: Requests inside at once, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.depth = 0
        """Requests inside now."""
        self._mean_s = 0.1

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """One request, from entry to exit.

        Raises:
            OverloadedError: There is no room; the delay is how long requests took of late.
        """
        if self.depth >= self.capacity:
            raise OverloadedError(
                f"the queue is full ({self.capacity} requests); try again in {self._mean_s:.1f} s",
                retry_after_s=self._mean_s,
            )
        self.depth += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self.depth -= 1
        # Only of those that ended well: one refused at once tells nothing.
        self._mean_s += 0.2 * (time.monotonic() - began - self._mean_s)


@contextlib.asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Cancels what runs within when the time is over.

    Args:
        deadline: Reading of ``time.monotonic``, or None.

    Raises:
        DeadlineError: It passed.
    """
    told = "the time ran out; grant more of it, or raise the server's --limit-s"
    remaining = None if deadline is None else deadline - time.monotonic()
    if remaining is not None and remaining <= 0:
        raise DeadlineError(told)
    try:
        async with asyncio.timeout(remaining) as scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineError(told) from error


class BatchCounts:
    """How much was computed together; several batchers, of one release after the other, may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.batches = 0
        """Batches computed so far."""
        self.items = 0
        """Items in them."""

    def add(self, items: int) -> None:
        """Count a batch."""
        with self._lock:
            self.batches += 1
            self.items += items


def observe_batches(metrics: Metrics, counts: BatchCounts, *, kind: str) -> None:
    """Show how much is computed together: the mean batch is items over batches.

    Args:
        metrics: Where.
        counts: What is shown.
        kind: What the items are, such as ``image``.
    """
    metrics.observe("batches_total", "Batches computed.", lambda: counts.batches, kind=kind)
    metrics.observe("batch_items_total", "Items in them.", lambda: counts.items, kind=kind)


@dataclass(eq=False)
class _Entry(Generic[In, Out]):
    item: In
    result: asyncio.Future[Out]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[In, Out]):
    """Computes single items in batches, in one thread.

    What arrives while a batch is being computed forms the next one. A lone item waits for nobody, unless
    ``max_wait_ms`` says so. Items whose caller has gone, or whose time is over, are never computed. If a batch fails,
    its items are computed one by one, so that only the culprit's caller hears of it.

    Args:
        compute: Items → as many results in their order; called in the thread.
        max_batch: Items computed together at most.
        capacity: Items admitted at most, those being computed included; one more is refused.
        max_wait_ms: How long an item waits for company, milliseconds.
        counts: Where batches are counted; None: nowhere else.
    """

    def __init__(
        self,
        compute: Callable[[list[In]], Sequence[Out]],
        *,
        max_batch: int,
        capacity: int,
        max_wait_ms: float = 0.0,
        counts: BatchCounts | None = None,
    ) -> None:
        self._compute, self._max_batch, self._max_wait_s = compute, max_batch, max_wait_ms / 1e3
        self._admission = Admission(capacity)
        self._changed = threading.Condition()  # guards the three below
        self._waiting: deque[_Entry[In, Out]] = deque()
        self._busy = self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vlmir-batch")
        self.counts = counts or BatchCounts()
        """How much was computed together."""

    @property
    def depth(self) -> int:
        """Items admitted and not yet answered."""
        return self._admission.depth

    @property
    def capacity(self) -> int:
        """Items admitted at most."""
        return self._admission.capacity

    async def __call__(self, item: In, *, deadline: float | None = None) -> Out:
        """The result of one item.

        Args:
            item: What to compute.
            deadline: Reading of ``time.monotonic`` after which nobody wants it, or None.

        Raises:
            OverloadedError: Too many are waiting; says when to try again.
            DeadlineError: The deadline passed.
            UnavailableError: The batcher has been closed.
            Exception: What ``compute`` raised for this item.
        """
        with self._admission():
            entry = _Entry[In, Out](item, asyncio.get_running_loop().create_future())
            async with until(deadline):
                self._submit(entry)
                return await entry.result

    def close(self) -> None:
        """Take nothing more, compute what waits, and end the thread; may be called from any thread.

        Waiting callers hear of their results only while their event loop runs: from there, call it in a thread.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.shutdown()

    def _submit(self, entry: _Entry[In, Out]) -> None:
        with self._changed:
            if self._closed:
                raise UnavailableError("this server is shutting down; ask another one")
            self._waiting.append(entry)
            self._changed.notify()
            if not self._busy:
                self._busy = True
                self._thread.submit(self._drain)

    def _drain(self) -> None:
        while batch := self._next():
            outcomes = self._outcomes(batch)
            batch[0].result.get_loop().call_soon_threadsafe(_tell, batch, outcomes)

    def _next(self) -> list[_Entry[In, Out]]:
        """The next batch; empty when nothing waits: the thread has ended its work then."""
        batch: list[_Entry[In, Out]] = []
        with self._changed:
            self._wait_for_company()
            while self._waiting and len(batch) < self._max_batch:
                entry = self._waiting.popleft()
                if not entry.result.done():  # else its caller was cancelled or ran out of time
                    batch.append(entry)
            self._busy = bool(batch)
        return batch

    def _wait_for_company(self) -> None:
        if self._max_wait_s and self._waiting:
            left = self._waiting[0].since + self._max_wait_s - time.monotonic()
            self._changed.wait_for(
                lambda: self._closed or len(self._waiting) >= self._max_batch, timeout=left
            )

    def _outcomes(self, batch: list[_Entry[In, Out]]) -> Sequence[Out | Exception]:
        try:
            return self._results([entry.item for entry in batch])
        except Exception as error:
            if len(batch) == 1:
                return [error]
            log.warning("a batch of %d failed; trying them one by one", len(batch), exc_info=error)
        return [outcome for entry in batch for outcome in self._outcomes([entry])]

    def _results(self, items: list[In]) -> Sequence[Out]:
        results = self._compute(items)
        if len(results) != len(items):
            raise ValueError(f"{len(items)} items gave {len(results)} results")
        self.counts.add(len(items))
        return results


def _tell(batch: Sequence[_Entry[In, Out]], outcomes: Sequence[Out | Exception]) -> None:
    for entry, outcome in zip(batch, outcomes, strict=True):
        if entry.result.done():
            continue
        if isinstance(outcome, Exception):
            entry.result.set_exception(outcome)
        else:
            entry.result.set_result(outcome)
