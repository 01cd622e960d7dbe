"""The memory planner: its model against what is really alive, free memory from made-up files, and refusals."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.small import small_preset
from vlmir.bundle import load_bundle
from vlmir.config import Preset, SamplerConfig, load_preset
from vlmir.diffusion import SOLVERS
from vlmir.errors import LimitError
from vlmir.memory import (
    HOLES,
    MOST_COPIES,
    SCRATCH,
    SLACK,
    MemoryPlanner,
    activations,
    free_host_memory,
    picture_room,
)
from vlmir.nn import UNet
from vlmir.parts import build_unet
from vlmir.pipeline import Restorer
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish

MIB = 2**20
PLAN = Plan(steps=1, solver="posterior", realism=0.0, tile=None)


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made under it, as long as each lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes = dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def sampler_of(config: SamplerConfig, dtype: torch.dtype = torch.float32) -> DiffusionSampler:
    return DiffusionSampler(UNet(config.unet).eval().to(dtype), config)


@pytest.fixture(scope="module")
def small() -> DiffusionSampler:
    return sampler_of(small_preset().sampler)


def planner(sampler: DiffusionSampler, free: int | None = None) -> MemoryPlanner:
    return MemoryPlanner(sampler, lambda device: free)


@pytest.mark.parametrize("preset", [load_preset("tiny"), small_preset()], ids=lambda p: p.name)
def test_activations_are_those_that_are_alive(preset: Preset) -> None:
    unet = UNet(preset.sampler.unet).eval().to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        known = unet.prepare(None, None, None, 1)
        with Alive() as alive:
            unet(x, x, torch.full((1,), 100), known)
    measured = alive.peak / x.element_size() / 128**2
    assert activations(preset.sampler.unet) == pytest.approx(measured, rel=0.02)


def test_linear_attention_is_counted() -> None:
    """The numbers of ``base``, traced once with its real size (see the test above): 834 a pixel."""
    assert activations(load_preset("base").sampler.unet) == pytest.approx(834, rel=0.02)


def test_need_grows_with_the_picture_and_the_tile(small: DiffusionSampler) -> None:
    plans = [replace(PLAN, tile=tile, call_pixels=1) for tile in (128, 256, 512)]
    by_tile = [planner(small).need(1000, 1000, plan).host for plan in plans]
    by_size = [planner(small).need(side, side, PLAN).host for side in (500, 1000, 2000, 4000)]
    assert by_tile == sorted(set(by_tile))
    assert by_size == sorted(set(by_size))


@pytest.mark.parametrize("ensemble", [False, True])
def test_what_fits_for_wide_damage_fits_for_any(small: DiffusionSampler, ensemble: bool) -> None:
    """The damage is not known yet when a plan is fitted."""
    plan = replace(PLAN, ensemble=ensemble)
    for size in ((64, 64), (128, 192), (1000, 700)):
        wide, other = (
            planner(small).need(*size, replace(plan, wide=wide)).host for wide in (True, False)
        )
        assert wide >= other


def test_bfloat16_halves_the_activations(small: DiffusionSampler) -> None:
    plan = replace(PLAN, tile=512)
    full, half = (
        planner(sampler_of(small.config, dtype)).need(512, 512, plan).host
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert full - half == pytest.approx(HOLES * 512**2 * 2 * activations(small.config.unet), abs=2)


def test_a_known_need(small: DiffusionSampler) -> None:
    """Two copies of the picture; a window's two inputs and its activations, with the holes; the constant."""
    plan, per_pixel = replace(PLAN, tile=0), 2 * 3 * 4 + 4 * activations(small.config.unet)
    for side, holes in ((256, HOLES / 2), (512, HOLES), (1024, HOLES)):
        call = round(holes * side**2 * per_pixel)
        assert planner(small).need(side, side, plan).host == 2 * 12 * side**2 + call + SCRATCH


@pytest.mark.parametrize("side", [100, 400, 512, 2000])
def test_the_room_for_a_call_is_what_a_call_needs(small: DiffusionSampler, side: int) -> None:
    there = planner(small)
    there._device = torch.device("cuda")
    call = there.need(side, side, replace(PLAN, tile=0)).device
    padded = (-(-side // small.unet.multiple) * small.unet.multiple) ** 2
    assert there.call_room(math.ceil(SLACK * call)) == pytest.approx(padded, rel=1e-3)


def test_samples_and_solvers_of_second_order_hold_more_copies(small: DiffusionSampler) -> None:
    plans = [
        replace(PLAN, steps=20, solver=solver, realism=realism)
        for solver, realism in [("ddim", 0.0), ("ddim", 1.0), ("ddim", 0.5), ("dpmpp_2m", 0.5)]
    ]
    hosts = [planner(small).need(4000, 4000, plan).host for plan in plans]
    assert hosts == sorted(set(hosts))


def test_what_fits_is_left_as_it_is(small: DiffusionSampler) -> None:
    for free in (None, 2**40):
        assert planner(small, free).fit(1000, 1000, PLAN) is PLAN


def test_short_memory_makes_calls_and_then_tiles_smaller() -> None:
    sampler = sampler_of(load_preset("tiny").sampler)
    roomy = planner(sampler)
    whole = roomy.need(2000, 2000, PLAN).host
    chosen = planner(sampler, int(1.14 * whole)).fit(2000, 2000, PLAN)
    assert chosen.tile == 384 and chosen.call_pixels == 1
    assert 1.15 * roomy.need(2000, 2000, chosen).host <= 1.14 * whole
    ensemble = replace(PLAN, tile=256, ensemble=True)
    together = roomy.need(256, 256, ensemble).host
    one_by_one = planner(sampler, together).fit(256, 256, ensemble)
    assert (one_by_one.tile, one_by_one.call_pixels) == (256, 1)


def test_what_cannot_fit_is_refused_with_numbers(small: DiffusionSampler) -> None:
    with pytest.raises(LimitError, match=r"6000×4000 pixels needs \d+ MiB, and 200 MiB are free; "):
        planner(small, 200 * MIB).fit(4000, 6000, PLAN)
    named = replace(PLAN, tile=0)
    with pytest.raises(LimitError, match=r"needs \d+\.\d GiB, .*smaller tiles \(at 128: \d+ MiB\)"):
        planner(small, 600 * MIB).fit(3000, 3000, named)


def test_a_graphics_processor_is_asked_for_the_network_alone(small: DiffusionSampler) -> None:
    there = planner(small)
    there._device = torch.device("cuda")
    need, whole = there.need(1000, 1000, PLAN), planner(small).need(1000, 1000, PLAN).host
    assert 0 < need.device < whole
    assert need.host < whole


def test_copies_beside_are_counted(small: DiffusionSampler) -> None:
    alone, two = (MemoryPlanner(small, beside=n).need(4000, 4000, PLAN).host for n in (0, 2))
    assert two - alone == 2 * 12 * 4000**2


@pytest.mark.parametrize("prediction", ["x0", "noise"])
def test_no_plan_keeps_more_copies_than_the_most(small: DiffusionSampler, prediction: str) -> None:
    there = planner(DiffusionSampler(small.unet, replace(small.config, prediction=prediction)))
    plans = [
        replace(PLAN, steps=steps, solver=solver, realism=realism)
        for steps in (1, 20)
        for solver in SOLVERS
        for realism in (0.0, 0.5, 1.0)
    ]
    most = max(there._copies(plan) for plan in plans)
    assert most == MOST_COPIES


def test_rooms_are_what_the_needs_come_to(small: DiffusionSampler) -> None:
    memory = 600 * MIB
    pixels = planner(small).call_room(memory)
    side = int(pixels**0.5) // 8 * 8
    call = planner(small).need(side, side, replace(PLAN, tile=0)).host - 2 * 12 * side**2
    assert 0.9 * memory < SLACK * call <= memory
    assert picture_room(memory, beside=1) * 9 * 12 == pytest.approx(memory / SLACK, rel=1e-4)
    assert planner(small).call_room(0) == picture_room(0, beside=0) == 1


def test_a_restorer_refuses_before_the_work(
    small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer = Restorer.load(small_bundle_folder)
    assert restorer._planner is not None
    monkeypatch.setattr(restorer._planner, "_free", lambda device: MIB)
    monkeypatch.setattr(restorer, "_caption", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(LimitError, match="1 MiB are free"):
        restorer.restore(np.zeros((64, 64, 3), np.uint8))


def test_windows_share_calls_and_change_nothing(small_bundle_folder: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    sampler = DiffusionSampler(build_unet(bundle), bundle.preset.sampler)
    batches = list[int]()
    sampler.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    picture = np.random.default_rng(0).random((130, 190, 3), np.float32)
    plan = replace(PLAN, tile=64, ensemble=True, call_pixels=5 * 96 * 96)
    results = []
    for calls in (plan, replace(plan, call_pixels=1)):
        batches.append(0)
        results += finish(sampler.sample([picture], [Conditions(None, None, None)], [0], calls))
    split = len(batches) - 1 - batches[::-1].index(0)
    together, alone = batches[1:split], batches[split + 1 :]
    assert max(together) > 4 and set(alone) == {1} and sum(together) == sum(alone)
    assert np.abs(results[0] - results[1]).max() < 1e-5


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable: 4000000 kB\n"}


def test_free_memory_is_what_the_system_says(tmp_path: Path) -> None:
    assert free_host_memory(system(tmp_path, MEMINFO)) == 4_000_000 * 1024


def test_free_memory_is_what_groups_leave(tmp_path: Path) -> None:
    second = MEMINFO | {
        "proc/self/cgroup": "0::/outer/own\n",
        "sys/fs/cgroup/outer/memory.max": "1000000000\n",
        "sys/fs/cgroup/outer/memory.current": "400000000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 5\ninactive_file 100000000\n",
        "sys/fs/cgroup/outer/own/memory.max": "max\n",
        "sys/fs/cgroup/outer/own/memory.current": "400000000\n",
    }
    assert free_host_memory(system(tmp_path / "v2", second)) == 700_000_000
    first = MEMINFO | {
        "proc/self/cgroup": "5:cpu:/\n4:memory:/own\n",
        "sys/fs/cgroup/memory/own/memory.limit_in_bytes": "500000000\n",
        "sys/fs/cgroup/memory/own/memory.usage_in_bytes": "600000000\n",
        "sys/fs/cgroup/memory/own/memory.stat": "total_inactive_file 150000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "600000000\n",
    }
    assert free_host_memory(system(tmp_path / "v1", first)) == 50_000_000


def test_in_a_container_the_path_of_the_group_need_not_be_there(tmp_path: Path) -> None:
    files = MEMINFO | {
        "proc/self/cgroup": "0::/../host/path\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "2000\n",
    }
    assert free_host_memory(system(tmp_path, files)) == 0


def test_without_any_files_the_system_is_asked(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) is None or free_host_memory(tmp_path) > 0  # type: ignore[operator]
