"""The training losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlmir.diffusion import IRSDE, NORMS, OBJECTIVES, loss, target
from vlmir.errors import OptionError

SCHEDULE = IRSDE()
Pictures = Callable[[int], tuple[Tensor, Tensor, Tensor]]
T_B = torch.tensor([2, 40, 100])


def test_loss_is_the_mean_of_each_sample(pictures: Pictures) -> None:
    x0, mu, noise = pictures(0)
    x_t = SCHEDULE.marginal(x0, mu, T_B, noise)
    output = torch.rand_like(x0)
    l1 = loss("noise", SCHEDULE, output, x0, mu, x_t, T_B, noise)
    l2 = loss("noise", SCHEDULE, output, x0, mu, x_t, T_B, noise, norm="l2")
    torch.testing.assert_close(l1, (output - noise).abs().mean((1, 2, 3)))
    torch.testing.assert_close(l2, (output - noise).square().mean((1, 2, 3)))


@pytest.mark.parametrize("objective", ["noise", "x0", "v"])
def test_a_perfect_network_has_no_loss(pictures: Pictures, objective: str) -> None:
    x0, mu, noise = pictures(1)
    x_t = SCHEDULE.marginal(x0, mu, T_B, noise)
    output = target(OBJECTIVES[objective], SCHEDULE, x0, mu, T_B, noise)
    assert (loss(objective, SCHEDULE, output, x0, mu, x_t, T_B, noise) < 1e-6).all()


def test_maximum_likelihood_is_least_near_the_true_noise(pictures: Pictures) -> None:
    """Its optimum is the true noise up to the discretisation, and half of it is clearly worse."""
    x0, mu, noise = pictures(2)
    x_t = SCHEDULE.marginal(x0, mu, T_B, noise)

    def at(scale: float) -> Tensor:
        return loss("ml", SCHEDULE, scale * noise, x0, mu, x_t, T_B, noise)

    assert at(1.0).shape == (3,)
    assert (at(1.0) < 0.005).all()
    assert (at(1.0) < at(0.5)).all() and (at(1.0) < at(1.5)).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_flows(pictures: Pictures, objective: str, norm: str) -> None:
    x0, mu, noise = pictures(3)
    output = torch.zeros_like(x0, requires_grad=True)
    x_t = SCHEDULE.marginal(x0, mu, T_B, noise)
    total = loss(objective, SCHEDULE, output, x0, mu, x_t, T_B, noise, norm=norm).sum()
    (gradient,) = torch.autograd.grad(total, output)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_unknown_names_raise(pictures: Pictures) -> None:
    x0, mu, noise = pictures(4)
    with pytest.raises(OptionError, match="objective"):
        loss("gan", SCHEDULE, x0, x0, mu, x0, T_B, noise)
    with pytest.raises(OptionError, match="norm"):
        loss("x0", SCHEDULE, x0, x0, mu, x0, T_B, noise, norm="l3")
    with pytest.raises(OptionError, match="prediction"):
        target("score", SCHEDULE, x0, mu, T_B, noise)
