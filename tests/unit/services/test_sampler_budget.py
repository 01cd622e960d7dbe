"""What the memory that is there lets the sampler do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from services.sampler import budget as module
from services.sampler.budget import Budget
from tests.unit.services.sampler_tools import Watched, batching, plan, sampled, task
from vlmir.errors import LimitError
from vlmir.memory import MOST_COPIES, SLACK
from vlmir.sampling import DiffusionSampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30
MOST = 2**18


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    return Watched(small_bundle_folder).sampler


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Bytes free of each kind of device, as the system says."""
    known: dict[str, int | None] = {"cpu": 4 * GIB, "cuda": 8 * GIB}
    monkeypatch.setattr(module, "free_memory", lambda device: known[device.type])
    return known


def test_it_is_what_is_free(free: dict[str, int | None]) -> None:
    here, there = (Budget.of(device, call_pixels=MOST) for device in (CPU, CUDA))
    assert (here.host, here.network, here.apart) == (4 * GIB, 4 * GIB, False)
    assert (there.host, there.network, there.apart) == (4 * GIB, 8 * GIB, True)


def test_what_is_given_takes_its_place_where_the_network_runs(free: dict[str, int | None]) -> None:
    here, there = (Budget.of(device, call_pixels=MOST, given=GIB) for device in (CPU, CUDA))
    assert (here.host, here.network) == (GIB, GIB)
    assert (there.host, there.network) == (4 * GIB, GIB)


def test_where_nothing_is_known_nothing_is_limited(
    sampler: DiffusionSampler, free: dict[str, int | None]
) -> None:
    free["cpu"] = None
    unknown = Budget.of(CPU, call_pixels=MOST)
    assert unknown.room(10**9) == 10**9
    assert unknown.fit(sampler, 4000, 6000, plan()) == plan(call_pixels=MOST)


def test_room_follows_the_memory(free: dict[str, int | None]) -> None:
    room = Budget.of(CPU, call_pixels=MOST).room(10**9)
    # Copies under way, two in messages, and three times as many pixels that wait.
    assert room == pytest.approx(2 * GIB / SLACK / (12 * (MOST_COPIES + 2 + 3)), rel=1e-4)
    assert Budget.of(CPU, call_pixels=MOST, given=GIB).room(10**9) == pytest.approx(
        room / 4, rel=1e-4
    )
    assert Budget.of(CUDA, call_pixels=MOST).room(10**9) == pytest.approx(2 * room, rel=1e-4)
    assert Budget.of(CPU, call_pixels=MOST).room(1000) == 1000


def test_calls_take_half_of_the_memory_at_most(sampler: DiffusionSampler) -> None:
    small = Budget.of(CPU, call_pixels=10**9, given=4 * GIB).fit(sampler, 64, 64, plan())
    large = Budget.of(CPU, call_pixels=10**9, given=8 * GIB).fit(sampler, 64, 64, plan())
    assert 2 * small.call_pixels < large.call_pixels < 10**9
    assert Budget.of(CPU, call_pixels=MOST, given=64 * GIB).fit(sampler, 64, 64, plan()) == plan(
        call_pixels=MOST
    )


def test_a_picture_that_does_not_fit_alone_is_refused(sampler: DiffusionSampler) -> None:
    with pytest.raises(LimitError, match=r"6000×4000 pixels needs .*, and 512 MiB are free"):
        Budget.of(CPU, call_pixels=MOST, given=GIB // 2).fit(sampler, 4000, 6000, plan())


def test_a_picture_that_leaves_little_memory_makes_calls_small(small_bundle_folder: Path) -> None:
    watched = Watched(small_bundle_folder)
    short = task(watched.sampler, call_pixels=2 * 40 * 56)
    others = [task(watched.sampler, seed=seed) for seed in range(1, 6)]

    async def check() -> None:
        with batching() as batcher:
            with watched.held():
                runs = [asyncio.create_task(sampled(batcher, one)) for one in (short, *others)]
                while batcher.depth < len(runs):
                    await asyncio.sleep(0.002)
            await asyncio.gather(*runs)

    asyncio.run(check())
    counts = [len(times) for times in watched.calls]
    together = counts[: 1 + counts.index(max(counts))]
    assert max(counts) > 2, "once it is done, calls are as large as they may be"
    assert set(together[1:-1]) == {2}
