"""Each result is computed once: in this process, and with a store in all of them, also after a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from services.common.batching import until
from services.common.wire import Delivery
from services.restorer.flights import Flights
from services.restorer.kept import CLAIM_S, KeptResults, Order, Pointer, own_key, put_picture
from services.restorer.storing import Storing
from vlmir.errors import DeadlineError, InputError, UnavailableError
from vlmir.v1 import restorer_pb2

__all__ = ["Part", "Results", "deliver"]

log = logging.getLogger("vlmir.results")

T = TypeVar("T")
Reply: TypeAlias = restorer_pb2.RestoreStreamResponse
Result: TypeAlias = restorer_pb2.RestoreResult

_LOOK_S = 0.25
"""Seconds between two looks whether another replica is ready."""
_PAUSE_S = 5.0
"""For so long a store that failed is not asked again: requests must not wait for it one after the other."""
_ASK_S = 2.0
"""For so long a request waits for a small object of the store; then the store has failed."""
_KEEP_S = 60.0
"""What a picture may take to be stored."""
_NOT_KEPT = (
    "The server's store does not answer: this result cannot be asked for again by its request id."
)


class Part(NamedTuple):
    """One of the replies that are computed for a request."""

    reply: Reply
    degraded: bool = False
    """Whether it is a result that was made without a stage that will be back: for others it is computed anew."""
    stored: asyncio.Task[bool] | None = None
    """Stores the result, and tells whether it could; None: it lies in the store, or is no result."""


class _Named(NamedTuple):
    """What a request's id stands for, while that is being stored."""

    pointer: Pointer
    stored: asyncio.Task[bool]


class Results:
    """Belongs to one event loop. A store that cannot be reached is done without.

    Args:
        kept: Results in the store; None: only requests under way in this process are known.
        storing: Calls the store; None: in threads made for it.
    """

    def __init__(self, kept: KeptResults | None, storing: Storing | None = None) -> None:
        self._kept = kept
        self._storing = storing or Storing()
        self._flights = Flights[Part]()
        # What is on its way to the store.
        self._held: dict[str, Part] = {}
        self._pointers: dict[str, _Named] = {}
        self._named: dict[str, str] = {}
        self._waiting = Counter[str]()
        self._tasks = set[asyncio.Task[Any]]()
        self._pause = 0.0

    async def replies(
        self,
        order: Order,
        release: str,
        start: Callable[[], AsyncGenerator[Part, None]],
        *,
        deadline: float | None,
        previews: bool = False,
    ) -> AsyncGenerator[Reply, None]:
        """The replies to a request: those of ``start``, or of whoever began or finished the same.

        A result has its picture's bytes, or says in ``image.store_uri`` where they lie. With a request id it is handed
        out when it can be asked for again, also after a crash of this process, or else with a warning; without one, at
        once.

        Args:
            order: What is asked for.
            release: The weights that are to answer, if nobody has begun yet.
            start: Computes it.
            deadline: Reading of ``time.monotonic`` after which to wait no longer, or None.
            previews: Whether ``start`` sends previews; it is not joined by who wants none, nor the other way round.

        Raises:
            InputError: The request's id stands for another order.
            DeadlineError: The deadline passed.
            Exception: What ``start`` raised.
        """
        key = order.key(release)
        with self._naming(order):
            async with until(deadline):
                earlier, named = await self._earlier(order, key)
            earlier = earlier or self._held.get(key)
            if earlier is not None:
                yield await self._last(order, earlier, named, deadline)
                return
            flight = f"{key} with previews" if previews else key
            parts = self._flights.join(flight, lambda: self._compute(key, start), deadline=deadline)
            async with aclosing(parts):
                async for part in parts:
                    if part.degraded:
                        part = part._replace(stored=self._keep_own(order, part.reply))
                    if part.reply.HasField("result"):
                        yield await self._last(order, part, named, deadline)
                        return  # whatever the time is when the computation ends
                    yield part.reply

    async def get(self, request_id: str, *, deadline: float | None = None) -> Result | None:
        """The result of an earlier request; None: it is being computed.

        Args:
            request_id: Its id, as in its order.
            deadline: Reading of ``time.monotonic`` after which to wait no longer, or None.

        Raises:
            InputError: None is known.
            DeadlineError: The deadline passed.
            UnavailableError: The store cannot be reached.
        """
        if request_id in self._named:
            return None
        if self._kept is None:
            raise InputError(
                f"No request {_as_sent(request_id)!r} is being restored here, and this server keeps no results; send "
                "it again."
            )
        look = partial(self._look, self._kept, request_id)
        return await self._storing.run(look, deadline=deadline)

    def _look(self, kept: KeptResults, request_id: str) -> Result | None:
        """What the store knows of a request; blocks."""
        named = self._pointers.get(request_id)
        pointer = named.pointer if named else kept.pointer(request_id)
        if pointer is None:
            raise InputError(
                f"No request {_as_sent(request_id)!r} is known; it was never sent, or its result has expired."
            )
        for key in (pointer.key, own_key(request_id, pointer.fingerprint)):
            held = self._held.get(key)
            found = held.reply.result if held else kept.find(key)
            if found is not None:
                return found
        if pointer.is_new or kept.is_claimed(pointer.key):
            return None
        raise InputError(
            f"Request {_as_sent(request_id)!r} was not finished, or its result has expired; send it again."
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

    async def _earlier(self, order: Order, key: str) -> tuple[Part | None, _Named | None]:
        """What the same id was answered with before, and what it stands for where that is not stored yet."""
        kept, name = self._kept, order.request_id
        if kept is None or not name:
            return None, None
        named = self._pointers.get(name)
        pointer = named.pointer if named else await self._try(kept.pointer, name)
        if pointer is not None:
            _check_same(order, pointer.fingerprint)
            for one in (pointer.key, order.own_key):
                if one == key:
                    continue  # it is looked for anyway
                found = self._held.get(one) or _part(await self._try(kept.find, one))
                if found is not None:
                    return found, named
            if pointer.key == key:
                return None, named
        return None, self._point(kept, order, key)

    def _point(self, kept: KeptResults, order: Order, key: str) -> _Named:
        """Let a request's id stand for ``key``; until that is stored, it is known here."""
        name, pointer = order.request_id, Pointer.to(order, key)

        async def store() -> bool:
            try:
                return await self._does(kept.point, name, pointer)
            finally:
                self._pointers.pop(name, None)

        named = self._pointers[name] = _Named(pointer, self._spawn(store()))
        return named

    async def _last(
        self, order: Order, part: Part, named: _Named | None, deadline: float | None
    ) -> Reply:
        """A request's result; if it has an id, when it can be found by that."""
        stores = [one.stored for one in (part, named) if one is not None and one.stored is not None]
        if not order.request_id or not stores:
            return part.reply
        left = _ASK_S if deadline is None else min(_ASK_S, max(0, deadline - time.monotonic()))
        done, late = await asyncio.wait(stores, timeout=left)
        if not late and all(one.result() for one in done):
            return part.reply
        reply = Reply()
        reply.CopyFrom(part.reply)
        reply.result.report.warnings.append(_NOT_KEPT)
        return reply

    async def _compute(
        self, key: str, start: Callable[[], AsyncGenerator[Part, None]]
    ) -> AsyncGenerator[Part, None]:
        kept = self._kept
        if kept is None:
            async with aclosing(start()) as parts:
                async for part in parts:
                    yield part
            return
        if (found := await self._found(kept, key)) is not None:
            yield Part(Reply(result=found))
            return
        # Other replicas know from its claim that it is being computed. Two may begin at the same moment.
        done = asyncio.Event()
        self._spawn(self._claim(kept, key, done))
        try:
            async with aclosing(start()) as parts:
                async for part in parts:
                    if part.reply.HasField("result") and not part.degraded:
                        part = part._replace(stored=self._hold(kept, key, part.reply, done))
                    yield part
        finally:
            if key not in self._held:
                done.set()

    async def _found(self, kept: KeptResults, key: str) -> Result | None:
        """The result, if there is one or another replica is about to have it."""
        while True:
            found = await self._try(kept.find, key)
            if found is not None or not await self._try(kept.is_claimed, key):
                return found
            await asyncio.sleep(_LOOK_S)

    async def _claim(self, kept: KeptResults, key: str, done: asyncio.Event) -> None:
        while not done.is_set():
            await self._does(kept.claim, key)
            try:
                await asyncio.wait_for(done.wait(), CLAIM_S / 3)
            except TimeoutError:
                continue
        await self._does(kept.unclaim, key)

    def _hold(
        self, kept: KeptResults, key: str, reply: Reply, done: asyncio.Event | None = None
    ) -> asyncio.Task[bool]:
        """Store a result; until it is, it is known here."""

        async def store() -> bool:
            try:
                return await self._does(kept.keep, key, reply.result, most_s=_KEEP_S)
            finally:
                self._held.pop(key, None)
                if done is not None:
                    done.set()

        task = self._spawn(store())
        self._held[key] = Part(reply, stored=task)
        return task

    def _keep_own(self, order: Order, reply: Reply) -> asyncio.Task[bool] | None:
        """Store a degraded result for the request that got it, and for no other."""
        if self._kept is None or not order.request_id:
            return None
        return self._hold(self._kept, order.own_key, reply)

    async def _does(
        self, method: Callable[..., object], *arguments: Any, most_s: float | None = None
    ) -> bool:
        """Whether the store did what it was told; no fault of it is one of the picture that was made."""

        def told() -> bool:
            method(*arguments)
            return True

        try:
            return await self._try(told, most_s=most_s) is not None
        except Exception:
            log.exception("the store failed unexpectedly")
            return False

    async def _try(
        self, method: Callable[..., T], *arguments: Any, most_s: float | None = None
    ) -> T | None:
        """What a method of the store gives; None where the store fails."""
        if time.monotonic() < self._pause:
            return None
        deadline = time.monotonic() + (most_s or _ASK_S)
        try:
            return await self._storing.run(partial(method, *arguments), deadline=deadline)
        except (UnavailableError, DeadlineError) as error:
            why = "it is too slow" if isinstance(error, DeadlineError) else error
            self._pause = time.monotonic() + _PAUSE_S
            log.warning("the store is done without for %.0f s: %s", _PAUSE_S, why)
            return None

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself would let it be collected
        task.add_done_callback(self._tasks.discard)
        return task


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


def _part(result: Result | None) -> Part | None:
    """A result that lies in the store."""
    return None if result is None else Part(Reply(result=result))


def _as_sent(request_id: str) -> str:
    """An id without whose it is."""
    return request_id.rpartition("/")[2]


def _check_same(order: Order, fingerprint: str) -> None:
    if fingerprint != order.fingerprint:
        raise InputError(
            f"Request id {_as_sent(order.request_id)!r} was used for another picture or other options; choose a new "
            "one."
        )
