"""Solvers of the reverse diffusion, as generators (see `vlmir.diffusion.sampling`).

All but Euler–Maruyama are built from two steps that are exact while x̂₀ stays the same: one follows
the probability-flow ODE, one samples the posterior. Solvers of second order extrapolate x̂₀ from the
last two predictions. The last prediction is the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from vlmir.diffusion.irsde import IRSDE
from vlmir.diffusion.sampling import Sampling, Solver, checked, checked_to_the_end
from vlmir.errors import OptionError

__all__ = [
    "SOLVERS",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler_maruyama",
    "posterior",
    "solver_named",
]


@checked_to_the_end
def euler_maruyama(
    x: Tensor, mu: Tensor, schedule: IRSDE, times: list[int], generator: torch.Generator
) -> Sampling:
    """Euler–Maruyama on the reverse SDE (IR-SDE, Luo et al. 2023, arXiv 2301.11699).

    The textbook discretisation, with noise up to the very end: give it fifty steps or more; with
    fewer than ten the result is visibly noisy, with one it is no picture.
    """
    for t, s in pairwise([*times, 0]):
        x0 = yield x, t
        Theta = (schedule.a(s) / schedule.a(t)).log()  # the integral of θ from s to t
        score = -(x - mu - schedule.a(t) * (x0 - mu)) / schedule.s(t) ** 2
        sigma2 = 2 * schedule.max_sigma**2 * Theta
        x = x - Theta * (mu - x) + sigma2 * score - sigma2.sqrt() * _randn(mu, generator)
    return x


@checked
def posterior(
    x: Tensor, mu: Tensor, schedule: IRSDE, times: list[int], generator: torch.Generator
) -> Sampling:
    """Sample p(x_s | x_t, x̂₀) at each step, as DDPM does; the default of IR-SDE's authors."""
    for t, s in pairwise(times):
        x = _posterior_step(x, (yield x, t), mu, schedule, t, s, generator)
    return (yield x, times[-1])


@checked
def ddim(
    x: Tensor, mu: Tensor, schedule: IRSDE, times: list[int], generator: torch.Generator
) -> Sampling:
    """DDIM (Song et al. 2021, arXiv 2010.02502): the first-order exponential integrator of the flow ODE."""
    for t, s in pairwise(times):
        x = _ode_step(x, (yield x, t), mu, schedule, t, s)
    return (yield x, times[-1])


@checked
def dpmpp_2m(
    x: Tensor, mu: Tensor, schedule: IRSDE, times: list[int], generator: torch.Generator
) -> Sampling:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, alg. 2): DDIM of second order."""
    x0_before, t_before = None, None
    for t, s in pairwise(times):
        x0 = yield x, t
        D = _extrapolate(x0, x0_before, schedule, t_before, t, s)
        x = _ode_step(x, D, mu, schedule, t, s)
        x0_before, t_before = x0, t
    return (yield x, times[-1])


@checked
def dpmpp_2m_sde(
    x: Tensor, mu: Tensor, schedule: IRSDE, times: list[int], generator: torch.Generator
) -> Sampling:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095): `posterior` of second order."""
    x0_before, t_before = None, None
    for t, s in pairwise(times):
        x0 = yield x, t
        D = _extrapolate(x0, x0_before, schedule, t_before, t, s)
        x = _posterior_step(x, D, mu, schedule, t, s, generator)
        x0_before, t_before = x0, t
    return (yield x, times[-1])


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "euler_maruyama": euler_maruyama,
        "posterior": posterior,
        "ddim": ddim,
        "dpmpp_2m": dpmpp_2m,
        "dpmpp_2m_sde": dpmpp_2m_sde,
    }
)
"""Every solver by its name."""


def solver_named(name: str) -> Solver:
    """The solver of that name.

    Raises:
        OptionError: There is none.
    """
    if name not in SOLVERS:
        raise OptionError(f"Unknown solver {name!r}; choose from {tuple(SOLVERS)}.")
    return SOLVERS[name]


def _ode_step(x: Tensor, x0: Tensor, mu: Tensor, schedule: IRSDE, t: int, s: int) -> Tensor:
    """x_s on the probability-flow ODE through x_t, exact while x̂₀ stays the same."""
    shrink = schedule.s(s) / schedule.s(t)
    return _joined(x, x0, mu, shrink, schedule.a(s) - schedule.a(t) * shrink)


def _posterior_step(
    x: Tensor,
    x0: Tensor,
    mu: Tensor,
    schedule: IRSDE,
    t: int,
    s: int,
    generator: torch.Generator,
) -> Tensor:
    """A draw of x_s from p(x_s | x_t, x₀)."""
    c_x, c_0, std = schedule.posterior(t, s)
    return _joined(x, x0, mu, c_x, c_0).add_(_randn(mu, generator).mul_(std))


def _joined(x: Tensor, x0: Tensor, mu: Tensor, c_x: Tensor, c_0: Tensor) -> Tensor:
    """μ + c_x (x − μ) + c_0 (x₀ − μ), with no more than two new pictures in memory."""
    joined = (x - mu).mul_(c_x).add_(mu)
    return joined.add_((x0 - mu).mul_(c_0))


def _extrapolate(
    x0: Tensor, x0_before: Tensor | None, schedule: IRSDE, t_before: int | None, t: int, s: int
) -> Tensor:
    """The prediction half a step ahead, on a straight line in half log-SNR through the last two."""
    if x0_before is None or t_before is None:
        return x0
    ell, ell_before, ell_after = (schedule.half_log_snr(i) for i in (t, t_before, s))
    return x0 + (ell_after - ell) / (2 * (ell - ell_before)) * (x0 - x0_before)


def _randn(mu: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(mu.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise.to(mu)
