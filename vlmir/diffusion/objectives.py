"""What a network is trained towards: the paper's maximum-likelihood objective and the usual three.

A preset names the prediction that its network makes; `OBJECTIVES` says which one follows from an objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from vlmir.diffusion.irsde import IRSDE
from vlmir.errors import OptionError

__all__ = ["NORMS", "OBJECTIVES", "loss", "target"]

OBJECTIVES: Mapping[str, str] = MappingProxyType(
    {"ml": "noise", "noise": "noise", "x0": "x0", "v": "v"}
)
"""Training objective → the prediction (see `IRSDE.to_x0`) that its network makes."""

NORMS = ("l1", "l2", "rms")


def loss(
    objective: str,
    schedule: IRSDE,
    output: Tensor,
    x0: Tensor,
    mu: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    norm: str = "l1",
) -> Tensor:
    """The training loss of each sample: a norm over its pixels and channels.

    Args:
        objective: A key of `OBJECTIVES`.
        schedule: The diffusion that made x_t.
        output: The network's output, B×C×H×W.
        x0: The clean pictures, B×C×H×W, 0…1.
        mu: The low-quality pictures.
        x_t: ``schedule.marginal(x0, mu, t, noise)``.
        t: Time indices in 1…T, int64 of shape (B,).
        noise: The standard normal noise in x_t.
        norm: "l1" (mean absolute), "l2" (mean squared) or "rms" (the square root of "l2": like PSNR it weighs a
            picture's error against its own size, so that hard tasks do not drown easy ones, yet within a picture it
            asks for the mean of what is possible, not the median).

    Returns:
        A tensor of shape (B,).

    Raises:
        OptionError: The objective or the norm is unknown.
    """
    if objective not in OBJECTIVES:
        raise OptionError(f"Unknown objective {objective!r}; choose from {tuple(OBJECTIVES)}.")
    if norm not in NORMS:
        raise OptionError(f"Unknown norm {norm!r}; choose from {NORMS}.")
    if objective == "ml":
        error = _reverse_mean(schedule, output, mu, x_t, t) - _optimum(schedule, x0, mu, x_t, t)
    else:
        error = output - target(OBJECTIVES[objective], schedule, x0, mu, t, noise)
    if norm == "l1":
        return error.abs().flatten(1).mean(1)
    squared = error.square().flatten(1).mean(1)
    return squared if norm == "l2" else squared.clamp_min(1e-8).sqrt()


def target(
    prediction: str, schedule: IRSDE, x0: Tensor, mu: Tensor, t: int | Tensor, noise: Tensor
) -> Tensor:
    """The output a perfect network would give: the inverse of `IRSDE.to_x0`.

    Raises:
        OptionError: The prediction is unknown.
    """
    if prediction == "noise":
        return noise
    if prediction == "x0":
        return x0 - mu
    if prediction == "v":
        y0 = (x0 - mu) / schedule.max_sigma
        return schedule.a(t) * noise - schedule.s(t) / schedule.max_sigma * y0
    raise OptionError(f"Unknown prediction {prediction!r}; no target is defined for it.")


def _reverse_mean(schedule: IRSDE, noise: Tensor, mu: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Mean of the discretised reverse SDE's step to t − 1, with the score −ε̂ / s_t."""
    score = -noise / schedule.s(t)
    drift = schedule.theta(t) * (mu - x_t) - schedule.sigma(t) ** 2 * score
    return x_t - drift * schedule.dt


def _optimum(schedule: IRSDE, x0: Tensor, mu: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x*_{t−1}, the likeliest state before x_t when x₀ is known (IR-SDE, prop. 3.2)."""
    c_x, c_0, _ = schedule.posterior(t, t - 1)
    return mu + c_x * (x_t - mu) + c_0 * (x0 - mu)
