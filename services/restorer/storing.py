"""A store as an event loop uses it: in threads of its own, and made ready when it can be."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.common.batching import until
from services.common.store import Store
from vlmir.errors import VlmirError

__all__ = ["Storing"]

log = logging.getLogger("vlmir.store")

T = TypeVar("T")

_THREADS = 16


class Storing:
    """Threads for the calls to a store: one that hangs holds up nothing else.

    The store is prepared from the start, and before each call until it has answered once.

    Args:
        store: The store, which need not answer yet; None: one that is ready.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vlmir-store")
        self._preparing = threading.Lock()
        self._unprepared = store
        if store is not None:
            self._pool.submit(self._warm)

    async def run(self, call: Callable[[], T], *, deadline: float | None) -> T:
        """What ``call`` gives, which blocks.

        Args:
            call: Uses the store.
            deadline: Reading of ``time.monotonic`` after which to wait no longer, or None.

        Raises:
            DeadlineError: The deadline passed.
            UnavailableError: The store does not answer.
            Exception: What ``call`` raised.
        """
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        async with until(deadline):
            return await loop.run_in_executor(self._pool, context.run, self._run, call)

    def _run(self, call: Callable[[], T]) -> T:
        self._prepare()
        return call()

    def _warm(self) -> None:
        try:
            self._prepare()
        except VlmirError as error:
            log.warning("the store is not ready, and is tried again when it is needed: %s", error)

    def _prepare(self) -> None:
        with self._preparing:
            if self._unprepared is not None:
                self._unprepared.prepare()
                self._unprepared = None
