"""A bounded queue in front of a few threads, for computations that come in steps."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from vlmir.errors import DeadlineError, OverloadedError

__all__ = ["WorkQueue"]

T = TypeVar("T")
_END = object()


class WorkQueue:
    """Runs generators to their end, each in one of a few threads, and hands over what they yield.

    Between two steps a computation is dropped when its deadline has passed or its consumer has
    gone; the generator is then closed, so it can free what it holds.

    Args:
        workers: Threads, at least 1: how many computations run side by side.
        waiting: How many more may wait for a thread; one more is refused.
    """

    def __init__(self, *, workers: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="vlmir-work")
        self._workers = workers
        self._lock = threading.Lock()
        self._admitted = 0
        self._mean_s = 1.0
        self.capacity = workers + waiting
        """Computations admitted at most, the running ones included."""

    @property
    def depth(self) -> int:
        """Computations admitted and not yet finished."""
        return self._admitted

    async def run(
        self, start: Callable[[], Generator[T, None, object]], *, deadline: float | None
    ) -> AsyncGenerator[T, None]:
        """Yield what the generator made by ``start`` yields; closing this one cancels that one.

        Args:
            start: Called in the thread; must not do the work itself, only make the generator.
            deadline: Reading of ``time.monotonic`` after which to give up, or None.

        Raises:
            OverloadedError: the queue is full; says when to try again.
            DeadlineError: the deadline passed, waiting or between two steps.
        """
        self._admit()
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[T | Future[None]] = asyncio.Queue()
        gone = threading.Event()

        def post(item: T | Future[None]) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, item)

        job = self._pool.submit(
            contextvars.copy_context().run, self._drive, start, post, gone, deadline
        )
        job.add_done_callback(self._release)
        job.add_done_callback(post)
        try:
            while not isinstance(item := await inbox.get(), Future):
                yield item
            item.result()
        finally:
            gone.set()
            job.cancel()

    def close(self) -> None:
        """Wait for the running computations to end; what still waits is dropped.

        The event loop must still be running, since they hand over their last items to it.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _admit(self) -> None:
        with self._lock:
            if self._admitted >= self.capacity:
                delay = self._mean_s * self._admitted / self._workers
                raise OverloadedError(
                    f"the queue is full ({self.capacity} requests); try again in {delay:.1f} s",
                    retry_after_s=delay,
                )
            self._admitted += 1

    def _release(self, _: Future[None]) -> None:
        with self._lock:
            self._admitted -= 1

    def _drive(
        self,
        start: Callable[[], Generator[T, None, object]],
        post: Callable[[T], None],
        gone: threading.Event,
        deadline: float | None,
    ) -> None:
        began = time.monotonic()
        with closing(start()) as steps:
            while not gone.is_set():
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineError(
                        "the time ran out; grant more of it, ask for fewer steps, or raise the server's --limit-s"
                    )
                item = next(steps, _END)
                if item is _END:
                    self._learn(time.monotonic() - began)
                    return
                post(item)  # type: ignore[arg-type]  # the sentinel is excluded above

    def _learn(self, seconds: float) -> None:
        with self._lock:
            self._mean_s += 0.2 * (seconds - self._mean_s)
