from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from services.common.batching import Admission, Batcher
from vlmir.errors import DeadlineError, OverloadedError, UnavailableError

PATIENCE_S = 20.0


class Doubling:
    """Doubles numbers and keeps the batches; with a gate, each batch waits until the test lets it through."""

    def __init__(self, *, gated: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.begun, self.gate = threading.Semaphore(0), threading.Semaphore(0)
        self._gated = gated

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        self.begun.release()
        if self._gated:
            assert self.gate.acquire(timeout=PATIENCE_S)
        if 13 in items:
            raise ValueError("13 is unlucky")
        return [2 * item for item in items]

    async def first_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S)


def run(
    test: Callable[[Batcher[int, int]], Coroutine[Any, Any, None]],
    compute: Callable[[list[int]], Sequence[int]],
    *,
    max_batch: int = 4,
    capacity: int = 100,
    max_wait_ms: float = 0,
) -> Batcher[int, int]:
    """Runs a test, then closes the batcher, which must not hang."""
    batcher = Batcher[int, int](
        compute, max_batch=max_batch, capacity=capacity, max_wait_ms=max_wait_ms
    )

    async def whole() -> None:
        try:
            await asyncio.wait_for(test(batcher), PATIENCE_S)
        finally:
            await asyncio.to_thread(batcher.close)

    asyncio.run(whole())
    return batcher


async def waiting(batcher: Batcher[int, int], count: int) -> None:
    while batcher.depth < count:
        await asyncio.sleep(0)


def test_what_arrives_during_a_batch_forms_the_next() -> None:
    doubling = Doubling(gated=True)

    async def test(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher(0))
        await doubling.first_begun()
        others = [asyncio.create_task(batcher(n)) for n in range(1, 7)]
        await waiting(batcher, 7)
        doubling.gate.release(3)
        assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10, 12]
        assert batcher.depth == 0

    batcher = run(test, doubling)
    assert doubling.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert (batcher.counts.batches, batcher.counts.items) == (3, 7)
    assert len(doubling.threads) == 1
    assert threading.get_ident() not in doubling.threads


def test_a_lone_item_waits_for_company_only_when_told_to() -> None:
    async def timed(batcher: Batcher[int, int]) -> None:
        began = time.monotonic()
        assert await batcher(1) == 2
        took.append(time.monotonic() - began)

    took: list[float] = []
    run(timed, Doubling())
    run(timed, Doubling(), max_wait_ms=100)
    assert took[1] >= 0.1 > took[0]


def test_company_ends_the_wait() -> None:
    doubling = Doubling()

    async def test(batcher: Batcher[int, int]) -> None:
        assert await asyncio.gather(batcher(1), batcher(2)) == [2, 4]

    run(test, doubling, max_batch=2, max_wait_ms=1000 * PATIENCE_S)
    assert doubling.batches == [[1, 2]]


def test_the_cancelled_and_the_late_are_not_computed() -> None:
    doubling = Doubling(gated=True)

    async def test(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher(0))
        await doubling.first_begun()
        gone = asyncio.create_task(batcher(1))
        late = asyncio.create_task(batcher(2, deadline=time.monotonic() + 0.05))
        kept = asyncio.create_task(batcher(3))
        await waiting(batcher, 4)
        gone.cancel()
        with pytest.raises(DeadlineError, match="grant more"):
            await late  # told at once, although a batch is under way
        with pytest.raises(DeadlineError):
            await batcher(4, deadline=time.monotonic())
        doubling.gate.release(2)
        assert await asyncio.gather(first, kept) == [0, 6]
        assert gone.cancelled()
        assert batcher.depth == 0

    run(test, doubling)
    assert doubling.batches == [[0], [3]]


def test_one_whose_time_runs_out_while_computed_is_told_so() -> None:
    doubling = Doubling(gated=True)

    async def test(batcher: Batcher[int, int]) -> None:
        with pytest.raises(DeadlineError):
            await batcher(1, deadline=time.monotonic() + 0.05)
        doubling.gate.release(2)
        assert await batcher(2) == 4

    run(test, doubling)


def test_one_too_many_is_refused_with_a_delay_that_is_learned() -> None:
    doubling = Doubling(gated=True)

    async def test(batcher: Batcher[int, int]) -> None:
        inside = [asyncio.create_task(batcher(n)) for n in range(3)]
        await waiting(batcher, 3)
        with pytest.raises(OverloadedError, match=r"full \(3 requests\)") as early:
            await batcher(4)
        await asyncio.sleep(0.2)
        doubling.gate.release(3)
        await asyncio.gather(*inside)
        inside = [asyncio.create_task(batcher(n)) for n in range(3)]
        await waiting(batcher, 3)
        with pytest.raises(OverloadedError) as later:
            await batcher(4)
        assert later.value.retry_after_s > early.value.retry_after_s > 0
        doubling.gate.release(3)
        await asyncio.gather(*inside)

    run(test, doubling, capacity=3)


def test_only_the_culprit_fails() -> None:
    doubling = Doubling(gated=True)

    async def test(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher(0))
        await doubling.first_begun()
        others = [asyncio.create_task(batcher(n)) for n in (1, 13, 2)]
        await waiting(batcher, 4)
        doubling.gate.release(5)
        got = await asyncio.gather(first, *others, return_exceptions=True)
        assert got[:2] == [0, 2] and got[3] == 4
        assert isinstance(got[2], ValueError) and "unlucky" in str(got[2])

    run(test, doubling)
    assert doubling.batches == [[0], [1, 13, 2], [1], [13], [2]]


def test_a_wrong_number_of_results_is_a_fault() -> None:
    async def test(batcher: Batcher[int, int]) -> None:
        with pytest.raises(ValueError, match="1 items gave 0 results"):
            await batcher(1)

    run(test, lambda items: [])


def test_closing_computes_what_waits_and_takes_no_more() -> None:
    doubling = Doubling(gated=True)

    async def test(batcher: Batcher[int, int]) -> None:
        inside = [asyncio.create_task(batcher(n)) for n in range(6)]
        await waiting(batcher, 6)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        doubling.gate.release(6)
        assert await asyncio.gather(*inside) == [0, 2, 4, 6, 8, 10]
        await closing
        with pytest.raises(UnavailableError, match="shutting down"):
            await batcher(7)
        assert batcher.depth == 0

    run(test, doubling)


def test_admission_learns_from_those_that_ended_well() -> None:
    admission = Admission(1)

    def delay() -> float:
        with admission(), pytest.raises(OverloadedError) as refused, admission():
            pass
        return refused.value.retry_after_s

    before = delay()
    with pytest.raises(KeyError), admission():
        raise KeyError
    assert admission.depth == 0
    assert delay() < before  # nothing took any time
