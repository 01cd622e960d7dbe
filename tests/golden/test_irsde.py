"""`vlmir.diffusion` against numbers computed with the code of IR-SDE's authors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlmir.diffusion import IRSDE, SOLVERS, drive

TIMES = ("t1", "t2", "t10", "t50", "t91", "t99", "t100")


@pytest.fixture(scope="module")
def golden(golden_numbers: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((golden_numbers / "irsde.json").read_text())
    return numbers


@pytest.mark.parametrize("key", TIMES)
def test_schedule(golden: dict[str, Any], key: str) -> None:
    irsde, want, t = IRSDE(), golden["schedule"][key], int(key[1:])
    assert irsde.dt == pytest.approx(golden["schedule"]["dt"], rel=1e-6)
    # The reference computes 1 − cos² in float32: small θ, and with them 1 − a², carry its rounding.
    lost = 6e-8
    c_x, c_0, std = (float(c) for c in irsde.posterior(t, t - 1))
    theta, a, s = float(irsde.theta(t)), float(irsde.a(t)), float(irsde.s(t))
    near = lost / (1 - a**2)
    assert theta == pytest.approx(want["theta"], rel=1e-6, abs=lost)
    assert -math.log(a) / irsde.dt == pytest.approx(want["theta_cumsum"], rel=1e-6, abs=t * lost)
    assert float(irsde.sigma(t)) == pytest.approx(want["sigma"], rel=1e-6 + lost / theta)
    assert s == pytest.approx(want["sigma_bar"], rel=1e-6 + near)
    assert a == pytest.approx(want["mu_bar_coef"], rel=1e-6)
    assert c_x == pytest.approx(want["term1"], rel=1e-6, abs=1.2 * near)
    assert c_0 == pytest.approx(want["term2"], rel=1e-6, abs=1.2 * near)
    assert std == pytest.approx(want["post_std"], rel=1e-6, abs=1e-11)


@pytest.fixture
def recipe() -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """x_T, μ, x₀ and the generator after x_T was drawn, as the reference numbers were made."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    x = IRSDE().prior(mu, torch.randn(mu.shape, generator=generator))
    return x, mu, mu.flip(-1) * 0.8, generator


@pytest.mark.parametrize("T", [20, 100])
@pytest.mark.parametrize(("solver", "key"), [("posterior", "posterior"), ("euler_maruyama", "sde")])
def test_trajectory(golden: dict[str, Any], recipe: Any, solver: str, key: str, T: int) -> None:
    x, mu, x0, generator = recipe
    want, schedule = golden["trajectories"][f"T{T}_{key}"], IRSDE(T=T)
    assert float(x.mean()) == pytest.approx(want["init_mean"], abs=1e-6)
    assert float(x.std()) == pytest.approx(want["init_std"], abs=1e-6)

    def exact_noise(x_t: Tensor, t: int) -> Tensor:
        noise = (x_t - schedule.marginal(x0, mu, t, torch.zeros_like(mu))) / schedule.s(t)
        return schedule.to_x0(noise, x_t, mu, t, "noise")

    out = drive(SOLVERS[solver](x, mu, schedule, T, generator), exact_noise)
    assert out.flatten()[:4].tolist() == pytest.approx(want["first4"], abs=2e-6)
    assert float(out.mean()) == pytest.approx(want["mean"], abs=1e-6)
    assert float(out.std()) == pytest.approx(want["std"], abs=1e-6)
    assert float((out - x0).abs().max()) == pytest.approx(want["max_abs_err_to_x0"], abs=2e-6)


@pytest.mark.parametrize("T", [20, 100])
def test_probability_flow_drift(golden: dict[str, Any], recipe: Any, T: int) -> None:
    """Plain Euler on the reference's ODE, from our coefficients: θ, σ, dt and the score agree."""
    x, mu, x0, _ = recipe
    want, schedule = golden["trajectories"][f"T{T}_ode"], IRSDE(T=T)
    for t in range(T, 0, -1):
        score = -(x - mu - schedule.a(t) * (x0 - mu)) / schedule.s(t) ** 2
        drift = schedule.theta(t) * (mu - x) - schedule.sigma(t) ** 2 * score / 2
        x = x - drift * schedule.dt
    assert x.flatten()[:4].tolist() == pytest.approx(want["first4"], abs=2e-6)
    assert float((x - x0).abs().max()) == pytest.approx(want["max_abs_err_to_x0"], abs=2e-6)
