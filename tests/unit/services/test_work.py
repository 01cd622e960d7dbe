"""The bounded queue of stepwise computations."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import aclosing
from contextvars import ContextVar

import pytest

from services.common.work import WorkQueue
from vlmir.errors import DeadlineError, OverloadedError

PATIENCE_S = 20.0


@pytest.fixture
def work() -> Iterator[WorkQueue]:
    queue = WorkQueue(workers=1, waiting=1)
    yield queue
    queue.close()


async def collect(work: WorkQueue, start: Callable[[], Generator[int, None, object]]) -> list[int]:
    return [item async for item in work.run(start, deadline=None)]


def count(to: int) -> Generator[int, None, None]:
    yield from range(to)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_yields_in_order_from_another_thread(work: WorkQueue) -> None:
    threads: set[int] = set()

    def steps() -> Generator[int, None, None]:
        threads.add(threading.get_ident())
        yield from range(5)

    assert asyncio.run(collect(work, steps)) == list(range(5))
    assert threading.get_ident() not in threads
    assert work.depth == 0


def test_errors_come_through_after_what_was_yielded(work: WorkQueue) -> None:
    def steps() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    async def check() -> None:
        got = []
        with pytest.raises(ValueError, match="broken"):
            async for item in work.run(steps, deadline=None):
                got.append(item)
        assert got == [1]

    asyncio.run(check())
    assert work.depth == 0


def test_one_too_many_is_refused_and_told_when(work: WorkQueue) -> None:
    gate = threading.Event()

    def steps() -> Generator[int, None, None]:
        assert gate.wait(PATIENCE_S)
        yield 1

    async def check() -> None:
        admitted = [asyncio.create_task(collect(work, steps)) for _ in range(work.capacity)]
        await until(lambda: work.depth == work.capacity)
        with pytest.raises(OverloadedError) as caught:
            await collect(work, steps)
        assert caught.value.retry_after_s > 0
        gate.set()
        assert await asyncio.gather(*admitted) == [[1], [1]]
        assert await collect(work, steps) == [1]

    asyncio.run(check())


def test_closing_drops_the_computation_at_its_next_step(work: WorkQueue) -> None:
    closed = threading.Event()

    def steps() -> Generator[int, None, None]:
        try:
            while True:
                time.sleep(0.01)
                yield 1
        finally:
            closed.set()

    async def check() -> None:
        async with aclosing(work.run(steps, deadline=None)) as items:
            await anext(items)
        assert await asyncio.to_thread(closed.wait, PATIENCE_S)
        await until(lambda: work.depth == 0)

    asyncio.run(check())


def test_a_computation_still_waiting_is_never_started(work: WorkQueue) -> None:
    gate, started = threading.Event(), threading.Event()

    def first() -> Generator[int, None, None]:
        assert gate.wait(PATIENCE_S)
        yield 1

    def second() -> Generator[int, None, None]:
        started.set()
        yield 2

    async def check() -> None:
        running = asyncio.create_task(collect(work, first))
        await until(lambda: work.depth == 1)
        waiting = asyncio.create_task(collect(work, second))
        await until(lambda: work.depth == 2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert work.depth == 1
        gate.set()
        await running

    asyncio.run(check())
    assert not started.is_set()


def test_the_deadline_ends_it_between_steps(work: WorkQueue) -> None:
    closed = threading.Event()

    def steps() -> Generator[int, None, None]:
        try:
            while True:
                time.sleep(0.01)
                yield 1
        finally:
            closed.set()

    async def check() -> None:
        with pytest.raises(DeadlineError):
            async for _ in work.run(steps, deadline=time.monotonic() + 0.1):
                pass

    asyncio.run(check())
    assert closed.wait(PATIENCE_S)


def test_context_variables_reach_the_thread(work: WorkQueue) -> None:
    name: ContextVar[int] = ContextVar("name")

    def steps() -> Generator[int, None, None]:
        yield name.get()

    async def check() -> list[int]:
        name.set(7)
        return await collect(work, steps)

    assert asyncio.run(check()) == [7]


def test_workers_run_side_by_side() -> None:
    work = WorkQueue(workers=2, waiting=0)
    meet = threading.Barrier(2)

    def steps() -> Generator[int, None, None]:
        yield meet.wait(PATIENCE_S)

    async def check() -> None:
        got = await asyncio.gather(collect(work, steps), collect(work, steps))
        assert sorted(got) == [[0], [1]]

    asyncio.run(check())
    work.close()
