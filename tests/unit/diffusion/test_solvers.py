"""What holds for every solver, and how fast each converges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlmir.diffusion import IRSDE, SOLVERS, Sampling, drive, solver_named, time_grid
from vlmir.errors import OptionError

SCHEDULE = IRSDE()
ENDS_ON_X0 = ("posterior", "ddim", "dpmpp_2m", "dpmpp_2m_sde")
STOCHASTIC = ("euler_maruyama", "posterior", "dpmpp_2m_sde")

every_solver = pytest.mark.parametrize("name", SOLVERS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(
    schedule: IRSDE, mu: Tensor, mean: float, std: float
) -> Callable[[Tensor, int], Tensor]:
    """The exact posterior mean E[x₀ | x_t] where x₀ − μ is normal with this mean and std."""

    def predict_x0(x: Tensor, t: int) -> Tensor:
        a, s = schedule.a(t), schedule.s(t)
        gain = a * std**2 / (a**2 * std**2 + s**2)
        return mu + mean + gain * (x - mu - a * mean)

    return predict_x0


# Properties of every solver.


@given(
    name=st.sampled_from(ENDS_ON_X0),
    steps=st.integers(1, 100),
    shape=st.lists(st.integers(1, 6), min_size=3, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_exact_x0_is_reached(name: str, steps: int, shape: list[int], seed: int) -> None:
    g = seeded(seed)
    x0, mu = torch.rand(shape, generator=g), torch.rand(shape, generator=g)
    x = SCHEDULE.prior(mu, torch.randn(shape, generator=g))
    out = drive(SOLVERS[name](x, mu, SCHEDULE, steps, g), lambda x, t: x0)
    assert torch.equal(out, x0)


@given(name=st.sampled_from(ENDS_ON_X0), steps=st.integers(2, 100), seed=st.integers(0, 99))
def test_exact_steps_keep_the_marginal_noise(name: str, steps: int, seed: int) -> None:
    """With the exact x̂₀ each state is μ + a (x₀ − μ) + s ε with ε of unit size."""
    g = seeded(seed)
    shape = (3, 32, 32)
    x0, mu = torch.rand(shape, generator=g), torch.rand(shape, generator=g)

    def exact(x: Tensor, t: int) -> Tensor:
        noise = (x - mu - SCHEDULE.a(t) * (x0 - mu)) / SCHEDULE.s(t)
        assert float(noise.std()) == pytest.approx(1, abs=0.1)
        return x0

    x = SCHEDULE.marginal(x0, mu, SCHEDULE.T, torch.randn(shape, generator=g))
    drive(SOLVERS[name](x, mu, SCHEDULE, steps, g), exact)


def test_euler_maruyama_comes_near_the_exact_x0() -> None:
    g = seeded(0)
    x0, mu = torch.rand(3, 16, 16, generator=g), torch.rand(3, 16, 16, generator=g)
    x = SCHEDULE.prior(mu, torch.randn(mu.shape, generator=g))
    out = drive(SOLVERS["euler_maruyama"](x, mu, SCHEDULE, 100, g), lambda x, t: x0)
    assert float((out - x0).abs().max()) < 0.025  # five times the noise of its last step


@every_solver
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_calls_the_network_once_a_step(name: str, steps: int) -> None:
    mu = torch.rand(3, 4, 4, generator=seeded(0))
    times: list[int] = []
    shown: list[int] = []

    def predict_x0(x: Tensor, t: int) -> Tensor:
        times.append(t)
        assert x.dtype == torch.float32 and x.shape == mu.shape
        return mu

    drive(
        SOLVERS[name](mu, mu, SCHEDULE, steps, seeded(1)),
        predict_x0,
        on_step=lambda step, x0: shown.append(step),
    )
    assert times == time_grid(SCHEDULE, steps)
    assert shown == list(range(1, steps + 1))


@every_solver
def test_the_seed_decides(name: str) -> None:
    mu = torch.rand(3, 8, 8, generator=seeded(0))
    x = SCHEDULE.prior(mu, torch.randn(mu.shape, generator=seeded(1)))
    model = gaussian(SCHEDULE, mu, 0.1, 0.3)
    state = torch.get_rng_state()
    first, again, other = (
        drive(SOLVERS[name](x, mu, SCHEDULE, 10, seeded(seed)), model) for seed in (2, 2, 3)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in STOCHASTIC)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


@every_solver
def test_alone_or_in_a_batch(name: str) -> None:
    """Solvers advanced side by side through one network call end where each ends alone."""
    conv = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    images = [torch.rand(3, 8, 8, generator=seeded(i)) for i in range(3)]

    def network(x: Tensor) -> Tensor:
        return torch.tanh(conv(x))

    def begin(i: int) -> Sampling:
        g = seeded(100 + i)
        mu = images[i]
        x = SCHEDULE.prior(mu, torch.randn(mu.shape, generator=g))
        return SOLVERS[name](x, mu, SCHEDULE, 8, g)

    alone = [drive(begin(i), lambda x, t: network(x[None])[0]) for i in range(3)]
    running = [begin(i) for i in range(3)]
    states = [next(solver)[0] for solver in running]
    together: list[Tensor] = []
    while not together:
        x0 = network(torch.stack(states))
        states = []
        for solver, one in zip(running, x0, strict=True):
            try:
                states.append(solver.send(one)[0])
            except StopIteration as end:
                together.append(end.value)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@every_solver
def test_closing_cancels(name: str) -> None:
    mu = torch.rand(3, 4, 4, generator=seeded(0))
    sampling = SOLVERS[name](mu, mu, SCHEDULE, 5, seeded(0))
    next(sampling)
    sampling.close()
    with pytest.raises(StopIteration):
        next(sampling)


def test_an_exception_in_the_network_closes_the_solver() -> None:
    mu = torch.rand(3, 4, 4, generator=seeded(0))
    sampling = SOLVERS["ddim"](mu, mu, SCHEDULE, 5, seeded(0))

    def broken(x: Tensor, t: int) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        drive(sampling, broken)
    with pytest.raises(StopIteration):
        next(sampling)


# The grid and the options.


@given(start=st.integers(1, 100), data=st.data())
def test_time_grid(start: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, start))
    times = time_grid(SCHEDULE, steps, start)
    assert len(times) == steps and times[0] == start and times[-1] >= 1
    gaps = [t - s for t, s in zip(times, [*times[1:], 0], strict=True)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


@given(start=st.integers(2, 100), data=st.data())
def test_a_grid_that_ends_early(start: int, data: st.DataObject) -> None:
    steps, last = data.draw(st.integers(2, start)), data.draw(st.integers(1, start))
    times = time_grid(SCHEDULE, steps, start, last)
    assert len(times) == steps and times[0] == start
    assert times[-1] == min(last, start - steps + 1)
    gaps = [t - s for t, s in itertools.pairwise(times)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("name", ENDS_ON_X0)
def test_the_result_is_what_is_seen_last(name: str) -> None:
    mu = torch.rand(3, 8, 8, generator=seeded(0))
    seen = []

    def network(x: Tensor, t: int) -> Tensor:
        seen.append((t, gaussian(SCHEDULE, mu, 0.1, 0.3)(x, t)))
        return seen[-1][1]

    x = SCHEDULE.prior(mu, torch.randn(mu.shape, generator=seeded(1)))
    result = drive(SOLVERS[name](x, mu, SCHEDULE, 8, seeded(2), last=30), network)
    assert seen[-1][0] == 30 and torch.equal(result, seen[-1][1])


def test_full_grid_is_every_index() -> None:
    assert time_grid(SCHEDULE, 100) == list(range(100, 0, -1))
    assert time_grid(SCHEDULE, 1) == [100]


@every_solver
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 101},
        {"steps": 11, "start": 10},
        {"start": 101},
    ],
)
def test_bad_options_raise_at_once(name: str, options: dict[str, int]) -> None:
    mu = torch.zeros(3, 4, 4)
    arguments = {"steps": 1, **options}
    with pytest.raises(OptionError, match="must be in"):
        SOLVERS[name](mu, mu, SCHEDULE, generator=seeded(0), **arguments)


@pytest.mark.parametrize("last", [0, 51])
def test_the_last_call_lies_within_the_way(last: int) -> None:
    with pytest.raises(OptionError, match=rf"last must be in 1…50, not {last}"):
        time_grid(SCHEDULE, 2, 50, last)


def test_shapes_must_agree() -> None:
    with pytest.raises(OptionError, match="shape"):
        SOLVERS["ddim"](torch.zeros(3, 4, 4), torch.zeros(3, 1, 4), SCHEDULE, 1, seeded(0))


def test_solver_named() -> None:
    assert solver_named("ddim") is SOLVERS["ddim"]
    with pytest.raises(OptionError, match="heun"):
        solver_named("heun")


# Convergence, where everything is known: x₀ − μ normal, so the network is a formula.


def ode_error(name: str, steps: int) -> float:
    """Distance to the exact end of the probability-flow ODE, in float64, on a fine schedule."""
    schedule, mean, std = IRSDE(T=4096), 0.15, 0.2
    mu = torch.zeros(1, 1, 64, dtype=torch.float64)
    r = schedule.max_sigma * torch.linspace(-2, 2, 64, dtype=torch.float64).view_as(mu)
    a, s = schedule.a(schedule.T), schedule.s(schedule.T)
    exact = mean + std / (a**2 * std**2 + s**2).sqrt() * (r - a * mean)
    model = gaussian(schedule, mu, mean, std)
    out = drive(SOLVERS[name](r, mu, schedule, steps, seeded(0)), model)
    return float((out - exact).abs().max())


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    errors = [ode_error(name, steps) for steps in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_have_the_right_distribution(name: str) -> None:
    mean, std = 0.15, 0.2
    mu = torch.full((1, 200, 200), 0.4)
    g = seeded(0)
    x = SCHEDULE.prior(mu, torch.randn(mu.shape, generator=g))
    out = drive(SOLVERS[name](x, mu, SCHEDULE, 100, g), gaussian(SCHEDULE, mu, mean, std)) - mu
    assert float(out.mean()) == pytest.approx(mean, abs=0.005)
    assert float(out.std()) == pytest.approx(std, rel=0.05)


def test_second_order_sde_needs_fewer_steps() -> None:
    def variance_error(name: str) -> float:
        mu, g = torch.zeros(1, 300, 300), seeded(0)
        x = SCHEDULE.prior(mu, torch.randn(mu.shape, generator=g))
        model = gaussian(SCHEDULE, mu, 0.15, 0.2)
        return abs(float(drive(SOLVERS[name](x, mu, SCHEDULE, 20, g), model).std()) - 0.2)

    assert variance_error("dpmpp_2m_sde") < variance_error("posterior") / 2
