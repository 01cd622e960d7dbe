"""Each result is computed once: among the callers of a process, among processes, and after a crash."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.store.folder import FolderStore
from services.common.wire import Delivery
from services.restorer import kept, results
from services.restorer.kept import KeptResults, Order, Pointer
from services.restorer.results import Part, Results, deliver
from tests.unit.services.stores import Hanging
from vlmir.errors import DeadlineError, InputError, UnavailableError, VlmirError
from vlmir.options import RestoreOptions
from vlmir.v1 import image_pb2, restorer_pb2

Reply = restorer_pb2.RestoreStreamResponse


class Work:
    """Counts how often it is begun; ends when it is let."""

    def __init__(self, *, fault: Exception | None = None, degraded: bool = False) -> None:
        self.begun = self.closed = 0
        self.gate = asyncio.Event()
        self._fault, self._degraded = fault, degraded

    async def __call__(self) -> AsyncGenerator[Part, None]:
        self.begun += 1
        try:
            yield Part(Reply(progress=image_pb2.Progress(step=1, steps=2)))
            await self.gate.wait()
            if self._fault is not None:
                raise self._fault
            yield Part(Reply(result=a_result()), self._degraded)
        finally:
            self.closed += 1


def a_result(data: bytes = b"a picture") -> restorer_pb2.RestoreResult:
    image = image_pb2.EncodedImage(format=image_pb2.IMAGE_FORMAT_PNG, width=3, height=2, data=data)
    report = restorer_pb2.Report(caption="a dog", degradations={"noisy": 0.25}, seed=2**62)
    return restorer_pb2.RestoreResult(image=image, report=report)


def order(request_id: str = "", picture: bytes = b"in", **options: Any) -> Order:
    return Order.of(request_id, picture, RestoreOptions(**options))


async def last(
    results: Results,
    asked: Order,
    work: Work,
    *,
    release: str = "tiny-1",
    within_s: float | None = None,
) -> restorer_pb2.RestoreResult:
    deadline = None if within_s is None else time.monotonic() + within_s
    replies = [r async for r in results.replies(asked, release, work, deadline=deadline)]
    return replies[-1].result


def stored(store: FolderStore, key: str) -> bool:
    return KeptResults(store).find(key) is not None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path / "store", "vlmir", [], {})
    made.prepare()
    return made


def test_an_order_is_the_picture_and_all_options() -> None:
    assert order("a").fingerprint == order("b").fingerprint == order(seed=0).fingerprint
    others = [order(picture=b"on"), order(seed=1), order(caption="x"), order(format="png")]
    assert len({order().fingerprint, *(other.fingerprint for other in others)}) == 5
    assert order().key("tiny-1") != order().key("tiny-2")


def test_who_asks_for_the_same_joins() -> None:
    async def test() -> None:
        shared, work = Results(None), Work()
        tasks = [asyncio.create_task(last(shared, order(name), work)) for name in ("a", "a", "b")]
        await until(lambda: work.begun == 1)
        other = Work()
        other.gate.set()
        await last(shared, order(seed=1), other)
        assert not any(task.done() for task in tasks)
        work.gate.set()
        assert [(await task).image.data for task in tasks] == [b"a picture"] * 3
        assert (work.begun, other.begun) == (1, 1)
        await last(shared, order(), work)
        assert work.begun == 2  # without a store nothing is remembered

    run(test)


def test_work_goes_on_while_anybody_waits() -> None:
    async def test() -> None:
        shared, work = Results(None), Work()
        leader = asyncio.create_task(last(shared, order(), work))
        await until(lambda: work.begun == 1)
        followers = [asyncio.create_task(last(shared, order(), work)) for _ in range(2)]
        await asyncio.sleep(0.01)
        for gone in (followers[0], leader):
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        assert work.closed == 0
        work.gate.set()
        assert (await followers[1]).image.data == b"a picture"
        assert work.begun == 1

    run(test)


def test_work_for_nobody_is_cancelled() -> None:
    async def test() -> None:
        shared, work = Results(None), Work()
        alone = asyncio.create_task(last(shared, order("id"), work))
        await until(lambda: work.begun == 1)
        alone.cancel()
        await until(lambda: work.closed == 1)
        with pytest.raises(InputError, match="keeps no results"):
            await shared.get("id")
        work.gate.set()
        await last(shared, order("id", seed=1), work)  # the id is free again
        assert work.begun == 2

    run(test)


def test_who_has_more_time_than_the_first_gets_another_try() -> None:
    async def test() -> None:
        shared, work = Results(None), Work(fault=DeadlineError("late"))
        first = asyncio.create_task(last(shared, order(), work))
        await until(lambda: work.begun == 1)
        better = Work()
        better.gate.set()
        second = asyncio.create_task(last(shared, order(), better, within_s=10))
        await asyncio.sleep(0.01)
        work.gate.set()
        with pytest.raises(DeadlineError, match="late"):
            await first
        assert (await second).image.data == b"a picture"
        assert better.begun == 1

    run(test)


def test_who_has_less_time_waits_no_longer() -> None:
    async def test() -> None:
        shared, work = Results(None), Work()
        first = asyncio.create_task(last(shared, order(), work))
        await until(lambda: work.begun == 1)
        with pytest.raises(DeadlineError):
            await last(shared, order(), work, within_s=0.02)
        work.gate.set()
        await first
        assert work.begun == 1

    run(test)


def test_a_fault_is_told_to_all() -> None:
    async def test() -> None:
        shared, work = Results(None), Work(fault=VlmirError("broken"))
        tasks = [asyncio.create_task(last(shared, order(), work)) for _ in range(2)]
        await asyncio.sleep(0.01)
        work.gate.set()
        for task in tasks:
            with pytest.raises(VlmirError, match="broken"):
                await task
        assert work.begun == 1

    run(test)


def test_an_id_stands_for_one_order(store: FolderStore) -> None:
    async def test() -> None:
        for shared in (Results(None), Results(KeptResults(store))):
            work = Work()
            running = asyncio.create_task(last(shared, order("id"), work))
            await until(lambda work=work: work.begun == 1)
            with pytest.raises(InputError, match="'id' was used for another picture"):
                await last(shared, order("id", seed=1), work)
            work.gate.set()
            await running
        await until(lambda: KeptResults(store).pointer("id") is not None)
        with pytest.raises(InputError, match="'id' was used"):
            await last(Results(KeptResults(store)), order("id", seed=1), Work())

    run(test)


def test_another_process_finds_the_result(store: FolderStore) -> None:
    async def test() -> None:
        work, idle = Work(), Work()
        work.gate.set()
        await last(Results(KeptResults(store)), order("first"), work)
        await until(lambda: stored(store, order().key("tiny-1")))
        for name in ("first", "second", ""):
            found = await last(Results(KeptResults(store)), order(name), idle)
            reply = deliver(found, delivery(store))
            assert reply == a_result()
        assert idle.begun == 0

    run(test)


def test_another_process_waits_for_who_is_computing(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_LOOK_S", 0.01)

    async def test() -> None:
        work, idle = Work(), Work()
        one, other = Results(KeptResults(store)), Results(KeptResults(store))
        first = asyncio.create_task(last(one, order("id"), work))
        await until(lambda: KeptResults(store).is_claimed(order().key("tiny-1")))
        second = asyncio.create_task(last(other, order("id"), idle))
        await asyncio.sleep(0.05)
        assert await other.get("id") is None  # still running
        work.gate.set()
        assert (await first).image.data == b"a picture"
        assert (await second).image.store_uri != ""
        assert idle.begun == 0
        await until(lambda: not KeptResults(store).is_claimed(order().key("tiny-1")))

    run(test)


def test_another_process_takes_over_from_one_that_died(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_LOOK_S", 0.01)
    monkeypatch.setattr(kept, "CLAIM_S", 0.2)

    async def test() -> None:
        dead = KeptResults(store)
        dead.claim(order().key("tiny-1"))
        work, began = Work(), time.monotonic()
        work.gate.set()
        assert (await last(Results(KeptResults(store)), order(), work)).image.data
        assert 0.15 < time.monotonic() - began < 3

    run(test)


def test_the_same_id_is_answered_from_the_release_it_began_with(store: FolderStore) -> None:
    async def test() -> None:
        work = Work()
        work.gate.set()
        shared = Results(KeptResults(store))
        await last(shared, order("id"), work)
        await until(lambda: stored(store, order().key("tiny-1")))
        await last(shared, order("id"), work, release="tiny-2")
        assert work.begun == 1
        await last(shared, order("new"), work, release="tiny-2")
        assert work.begun == 2

    run(test)


def test_what_has_expired_is_computed_again(store: FolderStore) -> None:
    async def test() -> None:
        work = Work()
        work.gate.set()
        shared = Results(KeptResults(store))
        await last(shared, order("id"), work)
        key = order().key("tiny-1")
        await until(lambda: stored(store, key))
        found = KeptResults(store).find(key)
        assert found is not None
        store.delete(found.image.store_uri)
        await last(shared, order("id"), work)
        assert work.begun == 2

    run(test)


def test_results_are_found_by_request(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "CLAIM_S", 0.2)

    async def test() -> None:
        shared = Results(KeptResults(store))
        with pytest.raises(InputError, match="No request 'id' is known"):
            await shared.get("id")
        work = Work()
        running = asyncio.create_task(last(shared, order("id"), work))
        await until(lambda: work.begun == 1)
        assert await shared.get("id") is None
        work.gate.set()
        result = await running
        assert await shared.get("id") is not None  # here, and …
        found = await Results(KeptResults(store)).get("id")  # … from elsewhere
        assert found is not None
        assert deliver(found, delivery(store)).report == result.report
        KeptResults(store).point("dead", Pointer.to(order(seed=9), "ab" * 32))
        assert await shared.get("dead") is None  # just begun
        await asyncio.sleep(0.25)
        with pytest.raises(InputError, match="was not finished"):
            await shared.get("dead")

    run(test)


def test_ids_are_their_callers_own(store: FolderStore) -> None:
    async def test() -> None:
        shared, work = Results(KeptResults(store)), Work()
        work.gate.set()
        await last(shared, order("anna/id"), work)
        assert await shared.get("anna/id") is not None
        for other in ("id", "bert/id"):
            with pytest.raises(InputError, match="No request 'id' is known"):
                await shared.get(other)
        await last(shared, order("bert/id", seed=9), work)  # though anna's stands for another order
        with pytest.raises(InputError, match="Request id 'id' was used for another"):
            await last(shared, order("bert/id"), work)

    run(test)


def test_a_store_that_fails_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    broken = FolderStore(tmp_path / "store", "vlmir", [], {})

    async def test() -> None:
        work = Work()
        work.gate.set()
        result = await last(Results(KeptResults(broken)), order("id"), work)
        assert result.image.data == b"a picture"
        assert "cannot be asked for again" in result.report.warnings[0]

    with pytest.raises(UnavailableError):
        KeptResults(broken).claim("key")
    run(test)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    store = Hanging(tmp_path / "store")
    yield store
    store.gate.set()


def test_a_store_that_hangs_is_done_without(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_ASK_S", 0.05)

    async def test() -> None:
        shared, work = Results(KeptResults(hanging)), Work()
        work.gate.set()
        assert (await last(shared, order("id"), work)).image.data == b"a picture"
        asked, began = hanging.asked, time.monotonic()
        assert (await last(shared, order("other", seed=1), work)).image.data == b"a picture"
        assert (hanging.asked, time.monotonic() - began < 0.04) == (asked, True)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 1) == 1  # threads are free
        with pytest.raises(DeadlineError):
            await shared.get("id", deadline=time.monotonic() + 0.02)

    run(test)


class Slow(KeptResults):
    """Keeps results when it is let."""

    def __init__(self, store: FolderStore) -> None:
        super().__init__(store)
        self.gate = threading.Event()

    def keep(self, key: str, result: restorer_pb2.RestoreResult) -> restorer_pb2.RestoreResult:
        assert self.gate.wait(20)
        return super().keep(key, result)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    kept = Slow(FolderStore(tmp_path / "store", "vlmir", [], {}))
    yield kept
    kept.gate.set()


def test_a_result_without_an_id_is_handed_out_before_it_is_kept(
    slow: Slow, store: FolderStore
) -> None:
    async def test() -> None:
        shared, work, key = Results(slow), Work(), order().key("tiny-1")
        work.gate.set()
        assert (await last(shared, order(), work)).image.data == b"a picture"
        assert (await last(shared, order(), work)).image.data == b"a picture"
        assert work.begun == 1
        await until(lambda: KeptResults(store).is_claimed(key))  # others wait for it
        slow.gate.set()
        await until(lambda: stored(store, key))
        await until(lambda: not KeptResults(store).is_claimed(key))

    run(test)


@pytest.mark.parametrize("degraded", [False, True])
def test_a_result_with_an_id_is_handed_out_when_it_is_kept(
    slow: Slow, store: FolderStore, degraded: bool
) -> None:
    async def test() -> None:
        shared, work = Results(slow), Work(degraded=degraded)
        work.gate.set()
        first = asyncio.create_task(last(shared, order("id"), work))
        await until(lambda: work.closed == 1)
        assert await shared.get("id") is None
        second = asyncio.create_task(last(shared, order("id"), work))
        await asyncio.sleep(0.05)
        assert not first.done() and not second.done()
        slow.gate.set()
        for task in (first, second):
            assert not (await task).report.warnings
            assert await Results(KeptResults(store)).get("id") is not None

    run(test)


@pytest.mark.parametrize("within_s", [None, 0.3])
def test_who_cannot_ask_again_is_told(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, within_s: float | None
) -> None:
    if within_s is None:
        monkeypatch.setattr(results, "_ASK_S", 0.3)

    async def test() -> None:
        work = Work()
        work.gate.set()
        result = await last(Results(slow), order("id"), work, within_s=within_s)
        assert result.image.data == b"a picture"
        (warning,) = result.report.warnings
        assert "cannot be asked for again" in warning

    run(test)


def test_a_degraded_result_is_for_its_own_request_only(store: FolderStore) -> None:
    async def test() -> None:
        shared, work, better = Results(KeptResults(store)), Work(degraded=True), Work()
        better.gate.set()
        both = [asyncio.create_task(last(shared, order(name), work)) for name in ("id", "too")]
        await until(lambda: work.begun == 1)
        await asyncio.sleep(0.02)
        work.gate.set()
        await asyncio.gather(*both)
        assert await shared.get("id") is not None
        await until(lambda: all(stored(store, order(name).own_key) for name in ("id", "too")))
        assert not stored(store, order().key("tiny-1"))
        for name in ("id", "too"):
            elsewhere = Results(KeptResults(store))
            assert (await last(elsewhere, order(name), better)).image.store_uri
            assert await elsewhere.get(name) is not None
        assert better.begun == 0
        await last(Results(KeptResults(store)), order("new"), better)
        assert (work.begun, better.begun) == (1, 1)

    run(test)


def test_who_wants_previews_does_not_join_who_wants_none() -> None:
    async def test() -> None:
        shared, plain, seeing = Results(None), Work(), Work()
        first = asyncio.create_task(last(shared, order(), plain))
        await until(lambda: plain.begun == 1)
        for work in (plain, seeing):
            work.gate.set()
        replies = shared.replies(order(), "tiny-1", seeing, deadline=None, previews=True)
        assert len([reply async for reply in replies]) == 2
        await first
        assert (plain.begun, seeing.begun) == (1, 1)

    run(test)


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", '{"image": 7}', '{"key": 1}', '{"owner": 1, "expires": null}']
)
def test_what_cannot_be_read_is_absent(store: FolderStore, text: str) -> None:
    kept_results = KeptResults(store)
    for kind, name in (
        ("keys", "key"),
        ("claims", "key"),
        ("requests", hashlib.sha256(b"id").hexdigest()),
    ):
        store.put_named(f"results/{kind}/{name}.json", text.encode())
    assert kept_results.find("key") is None
    assert kept_results.pointer("id") is None
    assert not kept_results.is_claimed("key")


def test_records_of_a_newer_version_are_read(store: FolderStore, tmp_path: Path) -> None:
    kept_results = KeptResults(store)
    kept_results.keep("key", a_result())
    kept_results.point("id", Pointer.to(order(), "key"))
    for path in (tmp_path / "store").rglob("*.json"):
        path.write_text('{"novel": {"a": 1}, ' + path.read_text()[1:])
    assert kept_results.find("key") is not None
    pointer = kept_results.pointer("id")
    assert pointer is not None and pointer.key == "key"


def delivery(store: FolderStore, *, asked: bool = False) -> Delivery:
    return Delivery(store=store, asked=asked, inline_bytes=10**6, link_s=60)


@pytest.mark.parametrize("known", ["data", "stored", "both"])
def test_a_result_is_delivered_as_asked(store: FolderStore, known: str) -> None:
    result = a_result()
    if known != "data":
        result = KeptResults(store).keep("key", result)
    if known == "stored":
        result.image.ClearField("data")
    assert deliver(result, delivery(store)) == a_result()
    linked = deliver(result, delivery(store, asked=True)).image
    assert Path(linked.uri.removeprefix("file://")).read_bytes() == b"a picture"
    assert store.get(linked.store_uri, 100) == b"a picture"
    assert (linked.size, linked.data) == (9, b"")


def test_a_result_that_cannot_be_stored_comes_in_the_reply(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    broken = FolderStore(tmp_path / "store", "vlmir", [], {})
    reply = deliver(a_result(), delivery(broken, asked=True))
    assert reply.image.data == b"a picture"
    assert "not by link" in reply.report.warnings[0]
    assert deliver(a_result(), None) == a_result()
