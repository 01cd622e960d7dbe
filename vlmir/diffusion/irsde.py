"""IR-SDE: a mean-reverting diffusion from the clean picture to the low-quality one.

Luo et al., "Image Restoration with Mean-Reverting Stochastic Differential Equations", ICML 2023
(arXiv 2301.11699). The forward SDE ``dx = θ (μ − x) dt + σ dw`` pulls the clean picture x₀ towards
the low-quality picture μ. With ``σ² = 2 λ² θ`` its marginals have a closed form::

    x_t = μ + a_t (x₀ − μ) + s_t ε,    a_t = exp(−∫θ),    s_t = λ √(1 − a_t²)

so in the coordinates ``y = (x − μ) / λ`` it is an ordinary variance-preserving diffusion, and every
solver made for those applies unchanged. This module is the one place that knows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlmir.errors import OptionError

__all__ = ["IRSDE", "PREDICTIONS"]

PREDICTIONS = ("noise", "x0", "v")
"""What a network may predict; `IRSDE.to_x0` says how each output reads."""


@dataclass(frozen=True, kw_only=True)
class IRSDE:
    """The schedule of the diffusion: its coefficients, marginals and predictions.

    A time index ``t`` runs from 0 (clean picture) to ``T`` (start of sampling). It is an int, or an
    int64 tensor of shape (B,). Coefficients come back as a 0-d float64 tensor for an int, and as a
    float32 tensor of shape B×1×1×1 on t's device for a tensor, so both multiply B×C×H×W pictures
    without changing their dtype. Pictures are RGB with values around 0…1.

    Raises:
        OptionError: A field is out of range, or an int ``t`` is not in 0…T.
    """

    max_sigma: float = 50 / 255
    """λ, the standard deviation of the noise at the end, in units of the 0…1 range."""
    T: int = 100
    """Number of time steps the interval is cut into."""
    eps: float = 0.005
    """a_T: how much of the residual x₀ − μ is left at the end."""
    schedule: str = "cosine"
    """How θ grows with time; "cosine" is the one the paper uses."""

    def __post_init__(self) -> None:
        """Refuse fields that describe no diffusion."""
        if not self.max_sigma > 0:
            raise OptionError(f"max_sigma must be above 0, not {self.max_sigma}.")
        if self.T < 1:
            raise OptionError(f"T must be at least 1, not {self.T}.")
        if not 0 < self.eps < 1:
            raise OptionError(f"eps must lie strictly between 0 and 1, not {self.eps}.")
        if self.schedule != "cosine":
            raise OptionError(f'Unknown schedule {self.schedule!r}; the known one is "cosine".')

    # The tables: float64, shape (T + 1,), index t.

    @cached_property
    def _theta(self) -> Tensor:
        """θ_t = 1 − ᾱ_t with Nichol & Dhariwal's cosine ᾱ, its two outermost points cut off."""
        u = torch.arange(self.T + 3, dtype=torch.float64) / (self.T + 2)
        alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return 1 - alpha_bar[1:-1] / alpha_bar[0]

    @cached_property
    def dt(self) -> float:
        """Length of one time step, such that a_T = eps."""
        return -math.log(self.eps) / float(self._theta[1:].sum())

    @cached_property
    def _Theta(self) -> Tensor:
        """The integral of θ from 0 to t; no θ is spent before the first step."""
        return (self._theta.cumsum(0) - self._theta[0]) * self.dt

    # The coefficients.

    def theta(self, t: int | Tensor) -> Tensor:
        """θ_t, the speed of reversion to μ, per unit of time."""
        return self._at(self._theta, t)

    def sigma(self, t: int | Tensor) -> Tensor:
        """σ_t = λ √(2 θ_t), the diffusion coefficient, per square root of time."""
        return self._at(self.max_sigma * (2 * self._theta).sqrt(), t)

    def a(self, t: int | Tensor) -> Tensor:
        """a_t, the share of the residual x₀ − μ that is left in x_t (1 at t = 0, eps at T)."""
        return self._at(torch.exp(-self._Theta), t)

    def s(self, t: int | Tensor) -> Tensor:
        """s_t, the standard deviation of the noise in x_t (the paper's σ̄_t)."""
        return self.max_sigma * self._at(self._variance.sqrt(), t)

    def half_log_snr(self, t: int | Tensor) -> Tensor:
        """ℓ_t = ln(a_t / √(1 − a_t²)), the clock of the DPM solvers; infinite at t = 0."""
        return self._at(-self._Theta - self._variance.log() / 2, t)

    def posterior(self, t: int | Tensor, s: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (c_x, c_0, std) of p(x_s | x_t, x₀) for s < t, both ints or both tensors.

        ``x_s = μ + c_x (x_t − μ) + c_0 (x₀ − μ) + std z``. With s = t − 1 its mean is the
        optimum reverse state of the paper (prop. 3.2); any s < t skips steps without loss.
        """
        decay = self._at(self._Theta, s) - self._at(self._Theta, t)  # ln(a_t / a_s), below 0
        v_t, v_s = self._at(self._variance, t), self._at(self._variance, s)
        v_ts = -torch.expm1(2 * decay)  # 1 − (a_t / a_s)², without cancellation
        c_x = torch.exp(decay) * v_s / v_t
        c_0 = self.a(s) * v_ts / v_t
        return c_x, c_0, self.max_sigma * (v_ts * v_s / v_t).sqrt()

    # Pictures.

    def marginal(self, x0: Tensor, mu: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """x_t from the clean picture x0, the low-quality mu and standard normal noise."""
        return mu + self.a(t) * (x0 - mu) + self.s(t) * noise

    def prior(self, mu: Tensor, noise: Tensor) -> Tensor:
        """The start of sampling, x_T = μ + λ z, from standard normal noise z."""
        return mu + self.max_sigma * noise

    def to_x0(
        self, output: Tensor, x_t: Tensor, mu: Tensor, t: int | Tensor, prediction: str
    ) -> Tensor:
        """The clean picture that a network output stands for.

        Args:
            output: The network's output, shaped like x_t.
            x_t: The noisy picture the network saw, B×C×H×W (C×H×W for an int t).
            mu: The low-quality picture.
            t: The time index.
            prediction: What the output is. "noise": ε. "x0": the residual x̂₀ − μ, so that zeros
                leave the low-quality picture as it is. "v": v = a_t ε − √(1 − a_t²) y₀
                (Salimans & Ho 2022) in the coordinates y.

        Raises:
            OptionError: The prediction is unknown.
        """
        if prediction == "noise":
            return mu + (x_t - mu - self.s(t) * output) / self.a(t)
        if prediction == "x0":
            return mu + output
        if prediction == "v":
            return mu + self.a(t) * (x_t - mu) - self.s(t) * output
        raise OptionError(f"Unknown prediction {prediction!r}; choose from {PREDICTIONS}.")

    @cached_property
    def _variance(self) -> Tensor:
        """1 − a_t², without cancellation at small t."""
        return -torch.expm1(-2 * self._Theta)

    def _at(self, table: Tensor, t: int | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return table.to(t.device, torch.float32)[t].view(-1, 1, 1, 1)
        if not 0 <= t <= self.T:
            raise OptionError(f"The time index {t} is outside 0…{self.T}.")
        return table[t]
