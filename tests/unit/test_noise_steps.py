"""Few steps of a network that predicts noise (DA-CLIP's layout) against a hundred, where all is known.

No public weights of the kind can be had here. In the network's place stands the best possible one, a formula, with an
error added to the noise it predicts. The residual x₀ − μ of a picture is normal, in each pixel by itself (detail) and
in each channel as a whole (tone: haze, darkness), which shows through far more noise than detail does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from vlmir import sampling
from vlmir.bundle import load_bundle
from vlmir.image.color import to_levels
from vlmir.metrics import fidelity
from vlmir.options import RestoreOptions
from vlmir.parts import build_unet
from vlmir.sampling import Conditions, DiffusionSampler, finish

PICTURES, SIDE = 8, 96
DETAIL = 0.04
"""Standard deviation of what μ does not tell, in each pixel."""


class Damage(NamedTuple):
    """What the residual x₀ − μ is like beyond its detail."""

    shift: float
    """Its mean."""
    tone: float
    """Its standard deviation in a channel as a whole."""


class Quality(NamedTuple):
    """Means over pictures."""

    psnr: float
    ssim: float


REALISMS = (0.25, 0.5, 0.75, 1.0)
DAMAGES = {"noise": Damage(0.0, 0.001), "haze": Damage(-0.2, 0.1)}


class Case:
    """Pictures, their damage, and the network that knows as much as can be known."""

    def __init__(self, sampler: DiffusionSampler, damage: Damage, error: float) -> None:
        generator = torch.Generator().manual_seed(0)

        def noise(side: int) -> Tensor:
            return torch.randn((PICTURES, 3, side, side), generator=generator)

        self.schedule, self.damage = sampler.schedule, damage
        self.error = error * noise(SIDE)
        clear = 0.5 + 0.1 * torch.nn.functional.interpolate(noise(4), (SIDE, SIDE), mode="bicubic")
        self.mu = clear - damage.shift
        self.x0 = clear + DETAIL * noise(SIDE) + damage.tone * noise(1)

    def predict(self, x: Tensor, mu: Tensor, t: Tensor, *_: object) -> Tensor:
        """E[ε | x_t], with the error."""
        a, s = self.schedule.a(t), self.schedule.s(t)
        r = x - mu - a * self.damage.shift
        tone = r.mean((2, 3), keepdim=True)
        y = self.gain(a, s, DETAIL**2) * (r - tone)
        y = y + self.gain(a, s / SIDE, self.damage.tone**2 + (DETAIL / SIDE) ** 2) * tone
        return (r - a * y) / s + self.error

    @staticmethod
    def gain(a: Tensor, s: Tensor, variance: float) -> Tensor:
        """How much of what is seen is part of y, seen as a y + s ε."""
        return a * variance / (a**2 * variance + s**2)


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    bundle = load_bundle(small_bundle_folder)
    config = dataclasses.replace(bundle.preset.sampler, prediction="noise", solver="posterior")
    return DiffusionSampler(build_unet(bundle), config)


Measure = Callable[..., Quality]


@pytest.fixture
def measure(sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """The quality of what the sampler makes of the pictures."""

    def measured(damage: str, error: float, **options: Any) -> Quality:
        case = Case(sampler, DAMAGES[damage], error)
        monkeypatch.setattr(sampler.unet, "forward", case.predict)
        lq, gt = (
            list(side.permute(0, 2, 3, 1).contiguous().numpy()) for side in (case.mu, case.x0)
        )
        run = sampler.sample(
            lq,
            [Conditions(None, None, None)] * PICTURES,
            range(PICTURES),
            sampler.plan(RestoreOptions(**options)),
        )
        pairs = zip(finish(run), gt, strict=True)
        scores = [fidelity(to_levels(one, 8), to_levels(other, 8)) for one, other in pairs]
        return Quality(*(float(np.mean([getattr(s, n) for s in scores])) for n in Quality._fields))

    return measured


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("error", [0.01, 0.1])
def test_few_posterior_steps_equal_a_hundred(measure: Measure, damage: str, error: float) -> None:
    hundred = measure(damage, error, steps=100)
    for steps in (4, 8):
        few = measure(damage, error, steps=steps)
        assert few.psnr >= hundred.psnr and few.ssim >= hundred.ssim


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("error", [0.01, 0.03])
def test_between_mean_and_sample_psnr_falls(measure: Measure, damage: str, error: float) -> None:
    mean, *dial = (measure(damage, error, realism=r, steps=20).psnr for r in (0.0, *REALISMS))
    assert dial == sorted(dial, reverse=True)
    assert mean > dial[0] - 0.01  # by four evaluations of its own, not twenty


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_mean_of_such_a_network_takes_four_evaluations(
    sampler: DiffusionSampler, measure: Measure, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    assert sampler.plan(RestoreOptions(realism=0.0)).evaluations == sampler.mean_states == 4
    four = measure(damage, 0.03, realism=0.0)
    monkeypatch.setattr(sampling, "MEAN_STATES", 1)
    one = measure(damage, 0.03, realism=0.0)
    assert four.psnr > one.psnr + 1 and four.ssim > one.ssim


def test_magnified_errors_do_not_leave_what_pictures_can_hold(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(sampler, DAMAGES["noise"], error=1.0)
    monkeypatch.setattr(sampler.unet, "forward", case.predict)
    lq = [np.ascontiguousarray(picture.permute(1, 2, 0).numpy()) for picture in case.mu]
    plan = sampler.plan(RestoreOptions(steps=4))
    seen = [
        step.x0
        for step in sampler.sample(
            lq, [Conditions(None, None, None)] * PICTURES, range(PICTURES), plan
        )
        if step.x0 is not None
    ]
    assert len(seen) == 4
    assert all(x0.min() >= 0 and x0.max() <= 1 for x0 in seen)
    assert any((x0 == 0).any() and (x0 == 1).any() for x0 in seen)  # the errors would have
