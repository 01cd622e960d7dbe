"""The schedule, its marginals and the three predictions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlmir.diffusion import IRSDE, PREDICTIONS, target
from vlmir.errors import OptionError

SCHEDULE = IRSDE()
Pictures = Callable[[int], tuple[Tensor, Tensor, Tensor]]


@given(T=st.integers(1, 400), eps=st.floats(1e-4, 0.5), max_sigma=st.floats(0.01, 1.0))
def test_ends_of_the_schedule(T: int, eps: float, max_sigma: float) -> None:
    schedule = IRSDE(T=T, eps=eps, max_sigma=max_sigma)
    assert float(schedule.a(0)) == 1 and float(schedule.s(0)) == 0
    assert float(schedule.a(T)) == pytest.approx(eps)
    a = torch.stack([schedule.a(t) for t in range(T + 1)])
    assert (a.diff() < 0).all()
    assert float(schedule.s(T)) == pytest.approx(max_sigma * (1 - eps**2) ** 0.5)


def test_half_log_snr() -> None:
    a = SCHEDULE.a(50)
    assert float(SCHEDULE.half_log_snr(50)) == pytest.approx(float((a / (1 - a**2).sqrt()).log()))
    assert float(SCHEDULE.half_log_snr(0)) == float("inf")


def test_int_and_tensor_times_agree(pictures: Pictures) -> None:
    x0, mu, noise = pictures(0)
    t = torch.tensor([1, 37, 100])
    together = SCHEDULE.marginal(x0, mu, t, noise)
    assert together.dtype == torch.float32
    for i, index in enumerate(t.tolist()):
        alone = SCHEDULE.marginal(x0[i], mu[i], index, noise[i])
        torch.testing.assert_close(together[i], alone)
    for whole, parts in zip(
        SCHEDULE.posterior(t, t - 1),
        zip(*(SCHEDULE.posterior(i, i - 1) for i in t.tolist()), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(whole.flatten(), torch.stack(parts).float(), rtol=1e-4, atol=0)


@given(seed=st.integers(0, 99), t=st.integers(1, 100), prediction=st.sampled_from(PREDICTIONS))
def test_to_x0_inverts_target(pictures: Pictures, seed: int, t: int, prediction: str) -> None:
    x0, mu, noise = (p.double() for p in pictures(seed))
    x_t = SCHEDULE.marginal(x0, mu, t, noise)
    output = target(prediction, SCHEDULE, x0, mu, t, noise)
    torch.testing.assert_close(SCHEDULE.to_x0(output, x_t, mu, t, prediction), x0)


def test_zero_residual_leaves_the_picture(pictures: Pictures) -> None:
    _, mu, noise = pictures(1)
    x_t = SCHEDULE.prior(mu, noise)
    assert torch.equal(SCHEDULE.to_x0(torch.zeros_like(mu), x_t, mu, 100, "x0"), mu)


def test_posterior_composes() -> None:
    """Going t → s → 0 by the posterior leaves the marginal's own mean and variance at s."""
    t, s = 80, 30
    c_x, c_0, std = SCHEDULE.posterior(t, s)
    assert float(c_x * SCHEDULE.a(t) + c_0) == pytest.approx(float(SCHEDULE.a(s)))
    assert float((c_x * SCHEDULE.s(t)) ** 2 + std**2) == pytest.approx(float(SCHEDULE.s(s)) ** 2)
    assert [float(c) for c in SCHEDULE.posterior(t, 0)] == [0, 1, 0]


@pytest.mark.parametrize(
    "fields", [{"max_sigma": 0}, {"T": 0}, {"eps": 0}, {"eps": 1}, {"schedule": "linear"}]
)
def test_bad_fields_raise(fields: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        IRSDE(**fields)  # type: ignore[arg-type]


def test_bad_arguments_raise(pictures: Pictures) -> None:
    x0, mu, noise = pictures(2)
    with pytest.raises(OptionError, match="prediction"):
        SCHEDULE.to_x0(noise, x0, mu, 3, "score")
    for t in (-1, 101):
        with pytest.raises(OptionError, match="time index"):
            SCHEDULE.a(t)
