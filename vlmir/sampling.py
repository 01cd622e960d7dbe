"""The sampler in process: one U-Net, solvers as generators, tiles blended at every step."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmir.config import SamplerConfig
from vlmir.diffusion import IRSDE, SOLVERS, solver_named
from vlmir.errors import VlmirError
from vlmir.image.tiles import TilePlan, plan_tiles
from vlmir.nn import Conditioning, UNet

__all__ = ["MIRRORS", "Conditions", "DiffusionSampler", "Plan", "SampleStep", "finish"]

FAINTEST = 0.05
"""Least share a_t of x₀ in a state from which a network that predicts noise tells x₀: its error is magnified 1/a_t."""

Pixels = npt.NDArray[np.float32]
_Run = Generator[tuple[Tensor, int], Tensor, Tensor]

MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""The axes along which a picture is flipped: as it is, left–right, top–bottom, both."""


class Conditions(NamedTuple):
    """What is known of one picture; None where it is not (a learnt null takes its place)."""

    f_T: Tensor | None
    """Embedding of its caption, D."""
    f_I: Tensor | None
    """Embedding of its clean content, D."""
    f_D: Tensor | None
    """Embedding of its damage, D."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one or more pictures are sampled."""

    steps: int
    """Network evaluations of the solver, 1…T; at realism 0 one is made."""
    solver: str
    """A key of ``SOLVERS``."""
    realism: float
    """0: the posterior mean, the most faithful picture; 1: a sample, the most real; between: the line joining them."""
    tile: int | None
    """Tile side in pixels; 0 for none, None for the preset's."""
    ensemble: bool = False
    """Whether each evaluation is the mean over the picture's four mirror images."""

    @property
    def evaluations(self) -> int:
        """Network evaluations in all: the first gives the mean, the others are made only for a sample."""
        return self.steps if self.realism > 0 else 1


@dataclass(frozen=True)
class _Work:
    """What is the same for every evaluation of a run."""

    mu: Tensor
    conditioning: Conditioning
    tiles: TilePlan
    mirrors: Sequence[tuple[int, ...]]
    evaluations: int


class SampleStep(NamedTuple):
    """One window of one network evaluation done."""

    step: int
    """Whole evaluations so far."""
    share: float
    """Share of all the work that is done, above 0, at most 1."""
    x0: Tensor | None
    """After the last window of an evaluation: the clean picture as the network sees it now, B×3×H×W."""


class DiffusionSampler:
    """Restores pictures of one size, alone or several at a time; each result is the same either way."""

    def __init__(self, unet: UNet, config: SamplerConfig) -> None:
        self.unet = unet
        self.config = config
        self.schedule = IRSDE(**vars(config.schedule))

    @property
    def most_steps(self) -> int:
        """The greatest number of steps."""
        return self.schedule.T

    @property
    def reads_captions(self) -> bool:
        """Whether a caption has an effect: DA-CLIP's network has no semantic cross-attention."""
        return self.unet.config.semantic

    @property
    def solvers(self) -> tuple[str, ...]:
        """Names of the solvers."""
        return tuple(SOLVERS)

    def tile_plan(self, height: int, width: int, tile: int | None) -> TilePlan:
        """The windows of a picture; one window where it fits, or with ``tile=0``."""
        side = self.config.tile if tile is None else tile or max(height, width)
        align = min(self.unet.multiple, side)
        overlap = min(self.config.overlap, max(0, side // 2 - align))
        return plan_tiles(height, width, tile=side, overlap=overlap, align=align)

    def sample(
        self,
        pictures: Sequence[Pixels],
        conditions: Sequence[Conditions],
        seeds: Sequence[int],
        plan: Plan,
    ) -> Generator[SampleStep, None, list[Pixels]]:
        """Restore B pictures of one size together.

        Each has its own solver and its own noise, drawn over the whole picture from its seed, so a picture's result
        does not depend on its neighbours in the batch, nor on the tiling beyond the network's field of view. Closing
        the generator cancels, within the time of one window.

        Realism follows Freirich et al. (2021, arXiv 2107.02555): between the posterior mean and a sample the best
        trade of error against naturalness is a straight line.

        Args:
            pictures: B low-quality pictures, H×W×3, RGB, 0…1.
            conditions: One for each.
            seeds: One for each.
            plan: Steps, solver, realism, tiling, ensemble.

        Yields:
            A :class:`SampleStep` after each window of each evaluation.

        Returns:
            B restored pictures, H×W×3, clipped to 0…1.

        Raises:
            OptionError: Solver or steps are impossible.
            VlmirError: The network produced values that are no numbers.
        """
        mu = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        work = _Work(
            mu,
            self._prepare(conditions),
            self.tile_plan(mu.shape[2], mu.shape[3], plan.tile),
            MIRRORS if plan.ensemble else MIRRORS[:1],
            plan.evaluations,
        )
        # x_T is noise around μ and tells nothing of x₀. A network that predicts x₀ is shown μ itself, since the noise
        # could only add an error; one that predicts the noise must see some.
        noise_free = self.config.prediction == "x0"
        runs = list[_Run]()
        if plan.realism > 0 or not noise_free:
            runs = [self._begin(mu[i], seed, plan) for i, seed in enumerate(seeds)]
        x_T = [next(run)[0] for run in runs]
        first = mu if noise_free else torch.stack(x_T)
        restored = mean = yield from self._evaluate(first, self._start(plan), work, done=0)
        if plan.realism > 0:
            sample = yield from self._follow(runs, mean, work)
            restored = torch.lerp(mean, sample, plan.realism)
        if not torch.isfinite(restored).all():
            raise VlmirError(
                "The network produced values that are no numbers; its weights are unfit."
            )
        return list(restored.clamp_(0, 1).permute(0, 2, 3, 1).contiguous().numpy())

    def _follow(
        self, runs: list[_Run], x0: Tensor, work: _Work
    ) -> Generator[SampleStep, None, Tensor]:
        """The solvers' samples of all pictures; x̂₀ is the answer to their first request."""
        for done in range(1, work.evaluations):
            requests = [run.send(x0[i]) for i, run in enumerate(runs)]
            x, t = torch.stack([x for x, _ in requests]), requests[0][1]
            x0 = yield from self._evaluate(x, t, work, done)
        return torch.stack([_finish(run, x0[i]) for i, run in enumerate(runs)])

    def _evaluate(
        self, x: Tensor, t: int, work: _Work, done: int
    ) -> Generator[SampleStep, None, Tensor]:
        """x̂₀ of all pictures by one evaluation, after ``done`` others; each window is told."""
        x0 = torch.zeros_like(x)
        canvas = x0.flatten(0, 1).numpy()  # the same memory
        windows = len(work.tiles.windows)
        for number, patch in enumerate(self._predict(x, t, work), start=1):
            work.tiles.add(canvas, number - 1, patch.flatten(0, 1).numpy())
            whole = number == windows
            share = (done + number / windows) / work.evaluations
            yield SampleStep(done + whole, share, x0 if whole else None)
        return x0

    def _begin(self, mu: Tensor, seed: int, plan: Plan) -> _Run:
        generator = torch.Generator().manual_seed(seed)
        x_T = self.schedule.prior(mu, torch.randn(mu.shape, generator=generator))
        solver, start = solver_named(plan.solver), self._start(plan)
        return solver(
            x_T, mu, self.schedule, plan.evaluations, generator, start=start, last=self.config.last
        )

    def _start(self, plan: Plan) -> int:
        """The time index of the first evaluation: T, but for few steps of a network that predicts noise."""
        T = self.schedule.T
        if self.config.prediction != "noise":
            return T
        usable = max(t for t in range(1, T + 1) if self.schedule.a(t) >= FAINTEST)
        return max(usable, plan.steps) if plan.realism == 1 else usable

    @torch.inference_mode()
    def _prepare(self, conditions: Sequence[Conditions]) -> Conditioning:
        null = self.unet.null
        columns = zip(("text", "image", "degradation"), zip(*conditions, strict=True), strict=True)
        f_T, f_I, f_D = (
            torch.stack([null[name] if f is None else f for f in column])
            for name, column in columns
        )
        return self.unet.prepare(f_T, f_I, f_D, len(conditions))

    def _predict(self, x: Tensor, t: int, work: _Work) -> Iterator[Tensor]:
        """x̂₀ of all pictures, window by window, each B×3×h×w: the mean over the window's mirror images.

        A restorer should turn a mirrored picture into the mirrored result; where it does not, the mean is nearer to
        the truth than any one of them (Timofte et al. 2016, "Seven ways to improve example-based single image super
        resolution", section 3.6).
        """
        times = torch.full((1,), t)

        def mirrored(rows: slice, columns: slice, axes: tuple[int, ...]) -> Tensor:
            x_w, mu_w = (
                part[..., rows, columns].flip(axes).contiguous(memory_format=torch.channels_last)
                for part in (x, work.mu)
            )
            output = self.unet(x_w, mu_w, times, work.conditioning)
            return self.schedule.to_x0(output, x_w, mu_w, t, self.config.prediction).flip(axes)

        for window in work.tiles.windows:
            with torch.inference_mode():  # entered anew for each: a caller's code runs in between
                patch = torch.stack([mirrored(*window.slices, axes) for axes in work.mirrors]).mean(
                    0
                )
            yield patch


def finish(run: Generator[SampleStep, None, list[Pixels]]) -> list[Pixels]:
    """Run :meth:`DiffusionSampler.sample` to its end and return the pictures."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return cast("list[Pixels]", end.value)


def _finish(run: _Run, x0: Tensor) -> Tensor:
    """Send the last x̂₀ and take the restored picture."""
    try:
        run.send(x0)
    except StopIteration as end:
        return cast(Tensor, end.value)
    raise AssertionError("the solver asked for more evaluations than its steps")
