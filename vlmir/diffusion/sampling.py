"""The contract between solvers and whoever drives them.

A solver yields the state it wants denoised and its time index, ``(x_t, t)``, is sent the clean
picture x̂₀ that the network sees in it, and returns the restored picture. It knows neither network
nor device nor batch, so its driver may put the requests of many solvers into one network call, show
x̂₀ as a preview, and cancel by closing it. `drive` is the plain driver.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import wraps
from typing import Protocol

import torch
from torch import Tensor

from vlmir.diffusion.irsde import IRSDE
from vlmir.errors import OptionError

__all__ = ["OnGrid", "Sampling", "Solver", "checked", "checked_to_the_end", "drive", "time_grid"]

Sampling = Generator[tuple[Tensor, int], Tensor, Tensor]
"""A sampling under way: yields (x_t, t), is sent x̂₀, returns the restored picture."""


class Solver(Protocol):
    """Starts sampling one picture, or a batch of them, C×H×W or B×C×H×W, float32."""

    def __call__(
        self,
        x: Tensor,
        mu: Tensor,
        schedule: IRSDE,
        steps: int,
        generator: torch.Generator,
        *,
        start: int | None = None,
        last: int | None = None,
    ) -> Sampling:
        """Begin at x.

        Args:
            x: The state at the start, usually ``schedule.prior(mu, noise)``.
            mu: The low-quality picture, shaped like x.
            schedule: The diffusion.
            steps: Number of network calls, 1…start. One step from T returns the posterior mean,
                the most faithful picture; many stochastic steps return a sample, the most real.
            generator: The source of all noise, drawn in float32 in mu's full shape on the
                generator's own device: with a CPU generator every device gets the same noise.
            start: The time index of x; T when None, the only one at which ``prior`` is true. Networks that
                predict noise magnify their error by 1/a_t (200 at T): one step alone must start later.
            last: The time index of the last network call, see `time_grid`. What the network sees there is the result:
                the mean of what is possible given the noise that is left, so the later, the smoother. Solvers whose
                result is their last state go on to 0.

        Raises:
            OptionError: At once, if steps, start or last is out of range or the shapes differ.
        """


OnGrid = Callable[[Tensor, Tensor, IRSDE, list[int], torch.Generator], Sampling]
"""The body of a solver: x, mu, schedule, the time indices of its network calls, generator."""


def time_grid(
    schedule: IRSDE, steps: int, start: int | None = None, last: int | None = None
) -> list[int]:
    """The time indices of the network calls: from start downwards, uniform in t.

    Without ``last`` the end, 0, is the place of the next call, which is left out: with steps == start these are all
    indices down to 1. With it the last call is there, or lower where so many steps need more room. One step is made at
    start.

    Raises:
        OptionError: start is not in 1…T, or steps or last not in 1…start.
    """
    first = schedule.T if start is None else start
    if not 1 <= first <= schedule.T:
        raise OptionError(f"start must be in 1…{schedule.T}, not {first}.")
    if not 1 <= steps <= first:
        raise OptionError(f"steps must be in 1…{first}, not {steps}.")
    if last is None or steps == 1:
        return [first - k * first // steps for k in range(steps)]
    if not 1 <= last <= first:
        raise OptionError(f"last must be in 1…{first}, not {last}.")
    way = max(first - last, steps - 1)
    return [first - k * way // (steps - 1) for k in range(steps)]


def checked(run: OnGrid) -> Solver:
    """Make a solver that checks its arguments when called, not when first advanced."""
    return _checked(run, ends_early=True)


def checked_to_the_end(run: OnGrid) -> Solver:
    """The same for a solver whose result is its last state: it cannot end where noise is left."""
    return _checked(run, ends_early=False)


def _checked(run: OnGrid, *, ends_early: bool) -> Solver:
    @wraps(run, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def begin(
        x: Tensor,
        mu: Tensor,
        schedule: IRSDE,
        steps: int,
        generator: torch.Generator,
        *,
        start: int | None = None,
        last: int | None = None,
    ) -> Sampling:
        if x.shape != mu.shape:
            raise OptionError(f"x {tuple(x.shape)} and mu {tuple(mu.shape)} differ in shape.")
        times = time_grid(schedule, steps, start, last if ends_early else None)
        return run(x, mu, schedule, times, generator)

    del begin.__dict__["__wrapped__"]  # else help() would show run's arguments, not begin's
    return begin


def drive(
    sampling: Sampling,
    predict_x0: Callable[[Tensor, int], Tensor],
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run one sampling to its end.

    Args:
        sampling: What a solver returned; it is closed whatever happens.
        predict_x0: The network: (x_t, t) → x̂₀.
        on_step: Called with the number of network calls so far and the last x̂₀, a preview. An
            exception raised there, or in predict_x0, cancels the sampling and passes through.

    Returns:
        The restored picture, shaped like the start. Values may lie slightly outside 0…1.
    """
    with closing(sampling):
        (x, t), step = next(sampling), 0
        while True:
            x0, step = predict_x0(x, t), step + 1
            if on_step is not None:
                on_step(step, x0)
            try:
                x, t = sampling.send(x0)
            except StopIteration as end:
                restored: Tensor = end.value
                return restored
