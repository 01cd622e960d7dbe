"""Each result is computed once: in this process, and with a store in all of them, also after a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias, TypeVar

from services.common.wire import Delivery
from services.restorer.flights import Flights
from services.restorer.kept import CLAIM_S, KeptResults, Order, put_picture
from vlmir.errors import InputError, UnavailableError
from vlmir.v1 import restorer_pb2

__all__ = ["Results", "deliver"]

log = logging.getLogger("vlmir.results")

T = TypeVar("T")
Reply: TypeAlias = restorer_pb2.RestoreStreamResponse

_LOOK_S = 0.25
"""Seconds between two looks whether another replica is ready."""
_PAUSE_S = 5.0
"""For so long a store that failed is not asked again: requests must not wait for it one after the other."""


class Results:
    """Belongs to one event loop. A store that cannot be reached is done without.

    Args:
        kept: Results in the store; None: only requests under way in this process are known.
    """

    def __init__(self, kept: KeptResults | None) -> None:
        self._kept = kept
        self._flights = Flights[Reply]()
        self._named: dict[str, str] = {}
        self._waiting = Counter[str]()
        self._tasks = set[asyncio.Task[None]]()
        self._pause = 0.0

    async def replies(
        self,
        order: Order,
        release: str,
        start: Callable[[], AsyncGenerator[Reply, None]],
        *,
        deadline: float | None,
    ) -> AsyncGenerator[Reply, None]:
        """The replies to a request: those of ``start``, or of whoever began or finished the same.

        A result has its picture's bytes, or says in ``image.store_uri`` where they lie, or both.

        Args:
            order: What is asked for.
            release: The weights that are to answer, if nobody has begun yet.
            start: Computes it.
            deadline: Reading of ``time.monotonic`` after which to wait no longer, or None.

        Raises:
            InputError: The request's id stands for another order.
            DeadlineError: The deadline passed.
            Exception: What ``start`` raised.
        """
        key = order.key(release)
        with self._naming(order):
            earlier = await self._earlier(order, key)
            if earlier is not None:
                yield Reply(result=earlier)
                return
            replies = self._flights.join(key, lambda: self._compute(key, start), deadline=deadline)
            async with aclosing(replies):
                async for reply in replies:
                    yield reply

    async def get(self, request_id: str) -> restorer_pb2.RestoreResult | None:
        """The result of an earlier request; None: it is being computed.

        Raises:
            InputError: None is known.
        """
        if request_id in self._named:
            return None
        if self._kept is None:
            raise InputError(
                f"No request {request_id!r} is being restored here, and this server keeps no results; send it again."
            )
        pointer = await asyncio.to_thread(self._kept.pointer, request_id)
        if pointer is None:
            raise InputError(
                f"No request {request_id!r} is known; it was never sent, or its result has expired."
            )
        found = await asyncio.to_thread(self._kept.find, pointer.key)
        if found is not None:
            return found
        if pointer.is_new or await asyncio.to_thread(self._kept.is_claimed, pointer.key):
            return None
        raise InputError(
            f"Request {request_id!r} was not finished, or its result has expired; send it again."
        )

    @contextmanager
    def _naming(self, order: Order) -> Iterator[None]:
        """Hold a request's id while it is served."""
        name = order.request_id
        if not name:
            yield
            return
        _check_same(order, self._named.setdefault(name, order.fingerprint))
        self._waiting[name] += 1
        try:
            yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._named[name]

    async def _earlier(self, order: Order, key: str) -> restorer_pb2.RestoreResult | None:
        """What the same id was answered with before; from now on it stands for ``key``."""
        kept = self._kept
        if kept is None or not order.request_id:
            return None
        pointer = await self._try(kept.pointer, order.request_id)
        if pointer is not None:
            _check_same(order, pointer.fingerprint)
            if pointer.key == key:
                return None  # it is looked for anyway
            if (found := await self._try(kept.find, pointer.key)) is not None:
                return found
        self._spawn(self._try(kept.point, order, key))
        return None

    async def _compute(
        self, key: str, start: Callable[[], AsyncGenerator[Reply, None]]
    ) -> AsyncGenerator[Reply, None]:
        kept = self._kept
        found = None if kept is None else await self._found(kept, key)
        if found is not None:
            yield Reply(result=found)
            return
        async with self._claiming(key), aclosing(start()) as replies:
            async for reply in replies:
                if kept is not None and reply.WhichOneof("event") == "result":
                    result = await self._try(kept.keep, key, reply.result)
                    reply = reply if result is None else Reply(result=result)
                yield reply

    async def _found(self, kept: KeptResults, key: str) -> restorer_pb2.RestoreResult | None:
        """The result, if there is one or another replica is about to have it."""
        while True:
            found = await self._try(kept.find, key)
            if found is not None or not await self._try(kept.is_claimed, key):
                return found
            await asyncio.sleep(_LOOK_S)

    @asynccontextmanager
    async def _claiming(self, key: str) -> AsyncIterator[None]:
        """Let other replicas know while the block runs. Best effort: two may begin at the same moment."""
        if self._kept is None:
            yield
            return
        done = asyncio.Event()
        self._spawn(self._claim(self._kept, key, done))
        try:
            yield
        finally:
            done.set()

    async def _claim(self, kept: KeptResults, key: str, done: asyncio.Event) -> None:
        while not done.is_set():
            await self._try(kept.claim, key)
            try:
                await asyncio.wait_for(done.wait(), CLAIM_S / 3)
            except TimeoutError:
                continue
        await self._try(kept.unclaim, key)

    async def _try(self, method: Callable[..., T], *arguments: Any) -> T | None:
        """What a method of the store gives; None where the store fails."""
        if time.monotonic() < self._pause:
            return None
        try:
            return await asyncio.to_thread(method, *arguments)
        except UnavailableError as error:
            self._pause = time.monotonic() + _PAUSE_S
            log.warning("results are not kept for %.0f s: %s", _PAUSE_S, error)
            return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself would let it be collected
        task.add_done_callback(self._tasks.discard)


def deliver(
    result: restorer_pb2.RestoreResult, delivery: Delivery | None
) -> restorer_pb2.RestoreResult:
    """A result of :class:`Results` as its caller wants it: with the picture's bytes, or a link to them. Blocks.

    Raises:
        InputError: The picture has just expired.
        UnavailableError: The store cannot be reached, and the picture is nowhere else.
    """
    reply = restorer_pb2.RestoreResult()
    reply.CopyFrom(result)
    image = reply.image
    has_data = image.WhichOneof("content") == "data"
    if delivery is not None and delivery.by_link(image.size or len(image.data)):
        try:
            if not image.store_uri:
                put_picture(image, delivery.store)
            image.uri = delivery.store.link(image.store_uri, delivery.link_s)
            return reply
        except UnavailableError as error:  # the work is done: better a big message than none
            if not has_data:
                raise
            reply.report.warnings.append(f"The result came in the reply, not by link: {error}")
    if not has_data and delivery is not None:
        image.data = delivery.store.get(image.store_uri, image.size)
    for name in ("store_uri", "sha256", "size"):
        image.ClearField(name)
    return reply


def _check_same(order: Order, fingerprint: str) -> None:
    if fingerprint != order.fingerprint:
        raise InputError(
            f"Request id {order.request_id!r} was used for another picture or other options; choose a new one."
        )
