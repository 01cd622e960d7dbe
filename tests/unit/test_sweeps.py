"""A picture's evaluations apart from the network calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlmir.bundle import load_bundle
from vlmir.errors import VlmirError
from vlmir.options import RestoreOptions
from vlmir.parts import build_unet
from vlmir.sampling import Conditions, DiffusionSampler, PictureRun, Plan
from vlmir.sweeps import Sweep, evaluate, padded

NOTHING = Conditions(None, None, None)
PLAN = Plan(steps=2, solver="posterior", realism=1.0, tile=64, ensemble=True)
MU = torch.rand(3, 80, 120, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    bundle = load_bundle(small_bundle_folder)
    return DiffusionSampler(build_unet(bundle), bundle.preset.sampler)


def drive(sampler: DiffusionSampler, run: PictureRun, *, backwards: bool = False) -> torch.Tensor:
    """Make all sweeps, whole sweeps at a time."""
    while True:
        try:
            sweep = next(run)
        except StopIteration as end:
            return end.value
        asked = []
        while sweep.size is not None:
            asked.append(sweep.take())
        for one in reversed(asked) if backwards else asked:
            sweep.give(one, evaluate([one])[0])
        assert sweep.complete


def test_answers_may_come_in_any_order(sampler: DiffusionSampler) -> None:
    straight, backwards = (
        drive(sampler, sampler.begin(MU, NOTHING, 1, PLAN), backwards=backwards)
        for backwards in (False, True)
    )
    assert (straight - backwards).abs().max() < 1e-5


def test_the_picture_is_only_read(sampler: DiffusionSampler) -> None:
    kept = MU.clone()
    for realism in (0.0, 0.5):
        plan = Plan(steps=2, solver="ddim", realism=realism, tile=0)
        drive(sampler, sampler.begin(MU, NOTHING, 1, plan))
    assert torch.equal(MU, kept)


def test_windows_are_cut_when_they_are_taken(sampler: DiffusionSampler) -> None:
    plan = Plan(steps=1, solver="ddim", realism=0.0, tile=64)
    sweep = next(sampler.begin(MU, NOTHING, 1, plan))
    window = sweep.take()
    assert window.x.untyped_storage().data_ptr() == MU.untyped_storage().data_ptr()


def test_each_window_is_handed_out_once(sampler: DiffusionSampler) -> None:
    sweep: Sweep = next(sampler.begin(MU, NOTHING, 1, PLAN))
    taken = 0
    while sweep.size is not None:
        sweep.take()
        taken += 1
    assert taken == 4 * len(sampler.tile_plan(80, 120, 64).windows)
    with pytest.raises(IndexError):
        sweep.take()
    assert not sweep.complete


def test_the_cost_is_what_the_network_reads(sampler: DiffusionSampler) -> None:
    run, read = sampler.begin(MU, NOTHING, 1, PLAN), 0
    for sweep in run:
        while sweep.size is not None:
            asked = sweep.take()
            read += asked.pixels
            sweep.give(asked, torch.zeros_like(asked.x))
    assert read == sampler.cost(80, 120, PLAN)


def test_a_window_without_numbers_is_said_at_once(sampler: DiffusionSampler) -> None:
    sweep = next(sampler.begin(MU, NOTHING, 1, PLAN))
    asked = sweep.take()
    output = torch.zeros_like(asked.x)
    output[1, 2, 3] = float("inf")
    with pytest.raises(VlmirError, match="no numbers"):
        sweep.give(asked, output)


@pytest.mark.parametrize("size", [(40, 50), (7, 33), (3, 5), (1, 9)])
def test_a_window_padded_before_is_as_one_padded_by_the_network(
    sampler: DiffusionSampler, size: tuple[int, int]
) -> None:
    plan = Plan(steps=1, solver="ddim", realism=0.0, tile=0)
    whole = padded(size, sampler.unet.multiple)
    one, other = (
        next(sampler.begin(torch.rand(3, *shape), NOTHING, 1, plan)).take()
        for shape in (size, whole)
    )
    alone, together = evaluate([one])[0], evaluate([one, other])[0]
    assert alone.shape == together.shape == (3, *size)
    assert (alone - together).abs().max() < 1e-5


def test_a_plan_has_the_presets_choices(sampler: DiffusionSampler) -> None:
    plan = sampler.plan(RestoreOptions())
    assert plan == Plan(steps=1, solver="dpmpp_2m_sde", realism=0.0, tile=None)
