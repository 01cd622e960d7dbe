"""Continuous batching: shared network calls, fair shares, and faults that stay alone."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.sampler import batcher as module
from services.sampler.batcher import Batcher
from services.sampler.job import Sampled, Task
from services.sampler.model import load_model
from tests.adapters import with_adapter
from tests.unit.services.sampler_tools import (
    NOTHING,
    Watched,
    alone,
    batching,
    sampled,
    task,
    until,
)
from vlmir.bundle import load_bundle
from vlmir.compute import REFERENCE
from vlmir.errors import (
    DeadlineError,
    OptionError,
    OverloadedError,
    UnavailableError,
    VlmirError,
)
from vlmir.sampling import Conditions, SampleStep

BIG: dict[str, Any] = {"size": (80, 120), "tile": 64}
"""Six windows a step."""


@pytest.fixture
def watched(small_bundle_folder: Path) -> Watched:
    return Watched(small_bundle_folder)


async def all_admitted(batcher: Batcher, watched: Watched, tasks: list[Task]) -> list[Any]:
    """Run tasks side by side; the first is alone in its first network call, during which the others come."""
    first, *others = tasks
    with watched.held():
        runs = [asyncio.create_task(sampled(batcher, first))]
        await until(lambda: bool(watched.calls))
        runs += [asyncio.create_task(sampled(batcher, other)) for other in others]
        await until(lambda: batcher.depth == len(tasks))
    return await asyncio.gather(*runs, return_exceptions=True)


def test_side_by_side_each_is_as_alone(watched: Watched) -> None:
    s = watched.sampler
    tasks = [
        task(s, seed=1),
        task(s, seed=2, steps=3, solver="dpmpp_2m_sde"),
        task(s, seed=3, steps=1, realism=0.0),
        task(s, seed=4, size=(64, 48), realism=0.5),
        task(s, seed=5, steps=2, ensemble=True),
        task(s, seed=6, steps=2, **BIG),
        task(s, seed=7, size=(1, 33), steps=2),
    ]
    expected = [alone(wanted) for wanted in tasks]
    watched.calls.clear()
    with batching() as batcher:
        got = asyncio.run(all_admitted(batcher, watched, tasks))
        assert batcher.depth == batcher.active == 0
        assert batcher.stats.steps == sum(wanted.plan.evaluations for wanted in tasks)
        assert batcher.stats.batches == len(watched.calls)
        assert batcher.stats.windows == sum(map(len, watched.calls))
    for wanted, one, other in zip(tasks, expected, got, strict=True):
        assert one.shape == other.shape == wanted.pixels.shape
        assert np.abs(one - other).max() < 1e-4
    assert max(map(len, watched.calls)) > 1


def test_a_tiled_picture_is_the_librarys_to_the_bit(watched: Watched) -> None:
    # A window to each call here and there: the last bits depend on how many share one.
    wanted = task(watched.sampler, steps=2, seed=3, call_pixels=1, **BIG)
    with batching(pixels=1) as batcher:
        got = asyncio.run(sampled(batcher, wanted))
    assert np.array_equal(got, alone(wanted))


def test_requests_share_network_calls_at_different_steps(watched: Watched) -> None:
    tasks = [task(watched.sampler, seed=seed) for seed in range(4)]
    with batching() as batcher:
        asyncio.run(all_admitted(batcher, watched, tasks))
    # The first was alone; the others joined at the very next call.
    assert [len(times) for times in watched.calls] == [1, 4, 4, 4, 4, 3]
    assert sorted(watched.calls[1]) == [80, 100, 100, 100]


def test_windows_of_one_padded_size_share_network_calls(watched: Watched) -> None:
    sizes = [(40, 56), (33, 50), (40, 49), (39, 56), (3, 3), (8, 2)]
    tasks = [task(watched.sampler, seed=seed, size=size) for seed, size in enumerate(sizes)]
    expected = [alone(wanted) for wanted in tasks]
    watched.calls.clear()
    with batching() as batcher:
        got = asyncio.run(all_admitted(batcher, watched, tasks))
    for one, other in zip(expected, got, strict=True):
        assert one.shape == other.shape and np.abs(one - other).max() < 1e-4
    assert max(map(len, watched.calls)) == 4
    assert len(watched.calls) == 6 + 5


def test_windows_of_one_picture_share_network_calls(watched: Watched) -> None:
    with batching(pixels=3 * 64 * 64) as batcher:
        asyncio.run(sampled(batcher, task(watched.sampler, steps=1, realism=0.0, **BIG)))
    windows = watched.sampler.tile_plan(80, 120, 64).windows
    assert sum(map(len, watched.calls)) == len(windows)
    assert max(map(len, watched.calls)) == 3


def test_a_network_call_has_no_more_pixels_than_it_may(watched: Watched) -> None:
    tasks = [task(watched.sampler, seed=seed) for seed in range(6)]
    with batching(pixels=4 * 40 * 56) as batcher:
        asyncio.run(all_admitted(batcher, watched, tasks))
    assert max(map(len, watched.calls)) == 4


def test_networks_never_share_a_call(watched: Watched, small_bundle_folder: Path) -> None:
    other = Watched(small_bundle_folder)
    tasks = [task(sampler, seed=1) for sampler in (watched.sampler, other.sampler)]
    with batching() as batcher:
        first, second = asyncio.run(all_admitted(batcher, watched, tasks))
    assert [len(times) for times in watched.calls + other.calls] == [1] * 10
    assert np.array_equal(first, second)


def test_damage_with_an_adapter_has_calls_of_its_own(
    small_bundle_folder: Path, tmp_path: Path
) -> None:
    with_adapter(small_bundle_folder, tmp_path / "bundle", label="noisy")
    watched = Watched(tmp_path / "bundle")
    (noisy,) = watched.sampler.adapted
    known = Conditions(None, None, noisy.damage.f_D)
    tasks = [
        replace(task(watched.sampler), conditions=conditions)
        for conditions in (NOTHING, NOTHING, known, known)
    ]
    expected = [alone(wanted) for wanted in tasks]
    watched.calls.clear()
    with batching() as batcher:
        got = asyncio.run(all_admitted(batcher, watched, tasks))
        calls, windows = batcher.stats.batches, batcher.stats.windows
    for one, other in zip(expected, got, strict=True):
        assert np.abs(one - other).max() < 1e-4
    assert np.abs(got[2] - got[0]).max() > 0.01
    assert [len(times) for times in watched.calls] == [1, 2, 2, 2, 2, 1]
    assert windows == 4 * 5 and calls - len(watched.calls) == 5


def test_a_small_picture_overtakes_a_big_one(watched: Watched) -> None:
    big = task(watched.sampler, steps=6, **BIG)
    small = task(watched.sampler, seed=1, steps=6)
    order: list[str] = []

    async def run(name: str, batcher: Batcher, wanted: Task) -> None:
        await sampled(batcher, wanted)
        order.append(name)

    async def check() -> None:
        with batching(pixels=64 * 64) as batcher:
            with watched.held():
                first = asyncio.create_task(run("big", batcher, big))
                await until(lambda: bool(watched.calls))
                second = asyncio.create_task(run("small", batcher, small))
                await until(lambda: batcher.depth == 2)
            await asyncio.gather(first, second)

    asyncio.run(check())
    assert order == ["small", "big"]
    smalls = [number for number, size in enumerate(watched.sizes) if size == (40, 56)]
    # It came during the first of 6 · 6 calls for the big one, joined at the next, and had its fair share of pixels.
    assert (len(smalls), len(watched.sizes)) == (6, 42)
    assert smalls[0] == 1 and smalls[-1] <= 10


def test_a_small_picture_never_waits_for_big_ones_to_end(watched: Watched) -> None:
    bigs = [task(watched.sampler, steps=20, **BIG) for _ in range(3)]
    small = task(watched.sampler, seed=1, steps=1, realism=0.0)

    async def check() -> None:
        with batching(active=2, pixels=5_000) as batcher:
            runs = [asyncio.create_task(sampled(batcher, big)) for big in bigs]
            await until(lambda: len(watched.calls) > 3)
            assert batcher.active == 1
            await sampled(batcher, small)
            assert not any(run.done() for run in runs)
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    asyncio.run(check())


def test_progress_is_told_after_each_window_and_previews_after_each_step(watched: Watched) -> None:
    wanted = task(watched.sampler, steps=2, **BIG)
    windows = len(watched.sampler.tile_plan(80, 120, 64).windows)

    async def check(batcher: Batcher, previews: bool) -> list[SampleStep | Sampled]:
        return [event async for event in batcher.run(wanted, previews=previews)]

    with batching() as batcher:
        *steps, last = asyncio.run(check(batcher, True))
        *plain, _ = asyncio.run(check(batcher, False))
    assert isinstance(last, Sampled) and set(last.milliseconds) == {"wait", "sample"}
    assert [step.step for step in steps] == [0] * (windows - 1) + [1] * windows + [2]
    assert [s.share for s in steps] == pytest.approx(
        [n / (2 * windows) for n in range(1, 2 * windows + 1)]
    )
    shown = [n for n, step in enumerate(steps, 1) if step.x0 is not None]
    assert shown == [windows, 2 * windows]
    assert [step._replace(x0=None) for step in steps] == plain


@pytest.mark.parametrize("realism", [0.0, 1.0])
@pytest.mark.parametrize("wide", [False, True])
def test_a_preview_is_what_the_network_saw_however_late_it_is_looked_at(
    watched: Watched, wide: bool, realism: float
) -> None:
    wanted = task(watched.sampler, steps=2, realism=realism, wide=wide)
    pixels = np.ascontiguousarray(wanted.pixels.transpose(1, 2, 0))
    steps = watched.sampler.sample([pixels], [wanted.conditions], [wanted.seed], wanted.plan)
    expected = [step.x0.clone() for step in steps if step.x0 is not None]

    async def shown() -> list[Tensor]:
        with batching() as batcher:
            events = [event async for event in batcher.run(wanted, previews=True)]
        return [e.x0 for e in events if isinstance(e, SampleStep) and e.x0 is not None]

    got = asyncio.run(shown())
    assert len(got) == len(expected) == wanted.plan.evaluations
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_previews_do_not_pile_up_where_nobody_reads(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = task(watched.sampler)
    monkeypatch.setattr("services.sampler.job._MOST_UNREAD", 2 * 4 * 3 * 40 * 56)

    async def check() -> list[SampleStep | Sampled]:
        with batching() as batcher:
            async with aclosing(batcher.run(wanted, previews=True)) as events:
                first = await anext(events)
                await until(lambda: batcher.depth == 0)
                return [first, *[event async for event in events]]

    *steps, _ = asyncio.run(check())
    assert len(steps) == 5
    assert 1 <= sum(step.x0 is not None for step in steps) <= 3


def test_who_leaves_frees_the_place_at_once_and_the_network_at_the_next_turn(
    watched: Watched,
) -> None:
    async def check() -> None:
        with batching(active=1, waiting=0) as batcher:
            with watched.held():
                events = batcher.run(task(watched.sampler, steps=100))
                waiting = asyncio.ensure_future(anext(events))
                await until(lambda: bool(watched.calls))
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                await events.aclose()
                assert batcher.depth == 0
                other = asyncio.create_task(sampled(batcher, task(watched.sampler, size=(32, 32))))
                await until(lambda: batcher.depth == 1)
            await other
            assert batcher.active == 0

    asyncio.run(check())
    assert watched.sizes == [(40, 56)] + [(32, 32)] * 5


def test_the_deadline_ends_it(watched: Watched) -> None:
    async def check() -> None:
        with batching() as batcher:
            with watched.held(), pytest.raises(DeadlineError, match="fewer steps"):
                await sampled(batcher, task(watched.sampler), deadline=time.monotonic() + 0.05)
            assert batcher.depth == 0
            await until(lambda: batcher.active == 0)

    asyncio.run(check())
    assert len(watched.calls) == 1


@pytest.mark.parametrize("room", [10**6, 40 * 56 // 2])
def test_one_too_many_is_refused_and_told_when(watched: Watched, room: int) -> None:
    async def check() -> None:
        with batching(active=1, waiting=1, room=room) as batcher:
            await sampled(batcher, task(watched.sampler))
            with watched.held():
                runs = [
                    asyncio.create_task(sampled(batcher, task(watched.sampler))) for _ in range(2)
                ]
                await until(lambda: batcher.depth == 2)
                with pytest.raises(OverloadedError, match="the queue is full") as caught:
                    await sampled(batcher, task(watched.sampler))
                # Learnt from the task before: such a small one takes a moment.
                assert 0.1 <= caught.value.retry_after_s < 5
            await asyncio.gather(*runs)
            batcher.check_room(40 * 56)

    asyncio.run(check())


def test_pixels_in_the_queue_are_limited_too(watched: Watched) -> None:
    async def check() -> None:
        with batching(room=2000) as batcher, watched.held():
            runs = [asyncio.create_task(sampled(batcher, task(watched.sampler))) for _ in range(3)]
            await until(lambda: batcher.depth == 3)
            with pytest.raises(OverloadedError, match="megapixels"):
                batcher.check_room(40 * 56)
            batcher.check_room(32 * 32)
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    asyncio.run(check())


def is_of(mu: Tensor, wanted: Task) -> Tensor:
    """Which of the windows are the task's, B."""
    return (mu == torch.from_numpy(wanted.pixels.copy())).flatten(1).all(1)


def test_values_that_are_no_numbers_stay_alone(watched: Watched) -> None:
    tasks = [task(watched.sampler, seed=seed) for seed in range(3)]
    expected = [alone(wanted) for wanted in tasks]
    watched.calls.clear()

    def spoil(output: Tensor, mu: Tensor) -> Tensor:
        spoilt = is_of(mu, tasks[1])[:, None, None, None]
        return torch.where(spoilt, torch.tensor(float("nan")), output)

    watched.spoil = spoil
    with batching() as batcher:
        first, fault, third = asyncio.run(all_admitted(batcher, watched, tasks))
        assert batcher.stats.retries == 0
    assert isinstance(fault, VlmirError) and "no numbers" in str(fault)
    for one, other in ((first, expected[0]), (third, expected[2])):
        assert np.abs(one - other).max() < 1e-4


def test_a_call_that_fails_fails_for_the_culprit_alone(watched: Watched) -> None:
    tasks = [task(watched.sampler, seed=seed) for seed in range(3)]
    expected = [alone(wanted) for wanted in tasks]
    watched.calls.clear()

    def spoil(output: Tensor, mu: Tensor) -> Tensor:
        if is_of(mu, tasks[1]).any():
            raise MemoryError("no memory for this one")
        return output

    watched.spoil = spoil
    with batching() as batcher:
        first, fault, third = asyncio.run(all_admitted(batcher, watched, tasks))
        assert batcher.stats.retries == 1
    assert isinstance(fault, MemoryError)
    for one, other in ((first, expected[0]), (third, expected[2])):
        assert np.abs(one - other).max() < 1e-4


def test_a_solver_that_cannot_begin_fails_alone(watched: Watched) -> None:
    tasks = [task(watched.sampler), task(watched.sampler, steps=101), task(watched.sampler)]
    with batching() as batcher:
        first, fault, third = asyncio.run(all_admitted(batcher, watched, tasks))
        assert batcher.depth == 0
    assert isinstance(fault, OptionError)
    assert np.abs(first - third).max() < 1e-4


def test_closing_tells_who_still_waits(watched: Watched) -> None:
    async def check() -> None:
        with batching(active=1) as batcher:
            runs = [asyncio.create_task(sampled(batcher, task(watched.sampler))) for _ in range(2)]
            with watched.held():
                await until(lambda: batcher.depth == 2 and bool(watched.calls))
                closing = asyncio.create_task(asyncio.to_thread(batcher.close))
                await until(lambda: _refuses(batcher))
            await closing
            ends = await asyncio.gather(*runs, return_exceptions=True)
            assert [type(end) for end in ends] == [UnavailableError] * 2
            with pytest.raises(UnavailableError, match="stopping"):
                await sampled(batcher, task(watched.sampler))

    asyncio.run(check())


def _refuses(batcher: Batcher) -> bool:
    try:
        batcher.check_room(1)
    except UnavailableError:
        return True
    return False


def test_it_survives_a_consumer_whose_event_loop_was_closed(watched: Watched) -> None:
    async def begin(batcher: Batcher) -> None:
        events = batcher.run(task(watched.sampler, steps=100))
        waiting = asyncio.ensure_future(anext(events))
        await until(lambda: bool(watched.calls))
        waiting.cancel()
        left.append(events)

    left: list[Any] = []
    with batching() as batcher:
        with watched.held():
            asyncio.run(begin(batcher))
        pixels = asyncio.run(sampled(batcher, task(watched.sampler, seed=1)))
    assert np.isfinite(pixels).all()


def test_while_it_idles_it_holds_no_model_and_no_picture(small_bundle_folder: Path) -> None:
    sampler = load_model(load_bundle(small_bundle_folder), REFERENCE)
    wanted = task(sampler, steps=2)
    kept = [weakref.ref(sampler), weakref.ref(wanted)]
    with batching() as batcher:
        asyncio.run(sampled(batcher, wanted))
        del sampler, wanted
        end = time.monotonic() + 5
        while any(ref() is not None for ref in kept):
            assert time.monotonic() < end, "the last job is still held"
            gc.collect()
            time.sleep(0.01)


def test_when_its_thread_dies_it_says_so_to_all(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    with batching() as batcher:
        batcher.check()
        monkeypatch.setattr(module, "pick", broken)
        for _ in range(2):
            with pytest.raises(UnavailableError):
                asyncio.run(sampled(batcher, task(watched.sampler)))
        with pytest.raises(UnavailableError):
            batcher.check()
    assert "a bug" in caplog.text
