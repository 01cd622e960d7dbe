"""The sampler in process: one U-Net, solvers as generators, tiles blended at every step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmir.config import SamplerConfig
from vlmir.diffusion import IRSDE, SOLVERS, Sampling, solver_named
from vlmir.errors import OptionError
from vlmir.image.tiles import TilePlan, plan_tiles
from vlmir.nn import Conditioning, UNet
from vlmir.options import SAMPLE_STEPS, RestoreOptions
from vlmir.sweeps import SampleStep, Sweep, Work, evaluate

__all__ = [
    "MIRRORS",
    "Conditions",
    "DiffusionSampler",
    "PictureRun",
    "Plan",
    "SampleStep",
    "finish",
]

FAINTEST = 0.05
"""Least share a_t of x₀ in a state from which a network that predicts noise tells x₀: its error is magnified 1/a_t."""

Pixels = npt.NDArray[np.float32]

PictureRun = Generator[Sweep, None, Tensor]
"""The sampling of one picture under way: yields each sweep to be made, and goes on once that is complete.

Returns the restored picture, 3×H×W, clipped to 0…1. Closing it cancels.
"""

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

    def cost(self, height: int, width: int, plan: Plan) -> int:
        """Pixels that the network reads to restore a picture, over all windows, mirror images and evaluations."""
        windows = self.tile_plan(height, width, plan.tile).windows
        pixels = sum(window.height * window.width for window in windows)
        return pixels * len(_mirrors(plan)) * plan.evaluations

    def plan(self, options: RestoreOptions) -> Plan:
        """The choices of ``options`` made explicit; what is not chosen is the preset's.

        Raises:
            OptionError: The solver is unknown, or there are too many steps.
        """
        solver = options.solver or self.config.solver
        if solver not in self.solvers:
            raise OptionError(f"Unknown solver {solver!r}; choose from {', '.join(self.solvers)}.")
        if options.steps is not None and options.steps > self.most_steps:
            raise OptionError(f"steps must be at most {self.most_steps}, not {options.steps}.")
        default = SAMPLE_STEPS if options.realism else self.config.steps
        steps = default if options.steps is None else options.steps
        realism = float(steps > 1) if options.realism is None else options.realism
        return Plan(
            steps=steps,
            solver=solver,
            realism=realism,
            tile=options.tile,
            ensemble=options.ensemble,
        )

    def sample(
        self,
        pictures: Sequence[Pixels],
        conditions: Sequence[Conditions],
        seeds: Sequence[int],
        plan: Plan,
    ) -> Generator[SampleStep, None, list[Pixels]]:
        """Restore B pictures of one size together, each as by :meth:`begin`; closing the generator cancels.

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
        runs = [
            self.begin(torch.from_numpy(picture).permute(2, 0, 1).contiguous(), known, seed, plan)
            for picture, known, seed in zip(pictures, conditions, seeds, strict=True)
        ]
        for done in range(plan.evaluations):
            sweeps = [next(run) for run in runs]
            yield from self._make(sweeps, done)
        return [_result(run).permute(1, 2, 0).contiguous().numpy() for run in runs]

    def begin(self, mu: Tensor, conditions: Conditions, seed: int, plan: Plan) -> PictureRun:
        """Restore one picture; whoever drives the run makes the network calls.

        It has its own solver and its own noise, drawn over the whole picture from its seed, so its result does not
        depend on what shares a network call with it, nor on the tiling beyond the network's field of view.

        Realism follows Freirich et al. (2021, arXiv 2107.02555): between the posterior mean and a sample the best
        trade of error against naturalness is a straight line.

        Args:
            mu: The low-quality picture, 3×H×W float32, RGB, 0…1. It must not change before the end.
            conditions: What is known of it.
            seed: Of its noise.
            plan: Steps, solver, realism, tiling, ensemble.

        Yields:
            ``plan.evaluations`` sweeps.

        Returns:
            The restored picture, 3×H×W, clipped to 0…1; it shares memory with the last sweep where that is the result.

        Raises:
            OptionError: Solver or steps are impossible.
        """
        work = Work(
            mu=mu,
            conditioning=self._prepare(conditions),
            tiles=self.tile_plan(mu.shape[1], mu.shape[2], plan.tile),
            mirrors=_mirrors(plan),
            evaluations=plan.evaluations,
            schedule=self.schedule,
            prediction=self.config.prediction,
        )
        # x_T is noise around μ and tells nothing of x₀. A network that predicts x₀ is shown μ itself, since the noise
        # could only add an error; one that predicts the noise must see some.
        noise_free = self.config.prediction == "x0"
        first = mu
        if plan.realism > 0 or not noise_free:
            solving = self._solve(mu, seed, plan)
            x_T, _ = next(solving)
            first = mu if noise_free else x_T
        sweep = self._predict(first, self._start(plan), work)
        yield sweep
        restored = mean = sweep.x0
        if plan.realism > 0:
            sample = yield from self._follow(solving, mean, work)
            restored = torch.lerp(mean, sample, plan.realism)
        return restored.clamp_(0, 1)

    def _make(self, sweeps: Sequence[Sweep], done: int) -> Generator[SampleStep, None, None]:
        """Make sweeps over pictures of one size, after ``done`` others, the same window of all in one call."""
        while not sweeps[0].complete:
            asked = [sweep.take() for sweep in sweeps]
            outputs = evaluate(self.unet, asked)
            given = zip(sweeps, asked, outputs, strict=True)
            if all([sweep.give(one, output) for sweep, one, output in given]):
                step, share, x0 = sweeps[0].told(done)
                if x0 is not None and len(sweeps) > 1:
                    x0 = torch.stack([sweep.x0 for sweep in sweeps])
                yield SampleStep(step, share, x0)

    def _follow(self, solving: Sampling, x0: Tensor, work: Work) -> Generator[Sweep, None, Tensor]:
        """The solver's sample; x̂₀ is the answer to its first request."""
        for _ in range(1, work.evaluations):
            sweep = self._predict(*solving.send(x0), work)
            yield sweep
            x0 = sweep.x0
        return _finish(solving, x0)

    def _predict(self, x: Tensor, t: int, work: Work) -> Sweep:
        """The sweep that finds x̂₀ in a state."""
        return Sweep(x, t, work)

    def _solve(self, mu: Tensor, seed: int, plan: Plan) -> Sampling:
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
    def _prepare(self, conditions: Conditions) -> Conditioning:
        null = self.unet.null
        named = zip(("text", "image", "degradation"), conditions, strict=True)
        f_T, f_I, f_D = ((null[name] if f is None else f)[None] for name, f in named)
        return self.unet.prepare(f_T, f_I, f_D, 1)


def finish(run: Generator[SampleStep, None, list[Pixels]]) -> list[Pixels]:
    """Run :meth:`DiffusionSampler.sample` to its end and return the pictures."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return cast("list[Pixels]", end.value)


def _mirrors(plan: Plan) -> tuple[tuple[int, ...], ...]:
    return MIRRORS if plan.ensemble else MIRRORS[:1]


def _result(run: PictureRun) -> Tensor:
    """What a run returns after its last sweep."""
    try:
        next(run)
    except StopIteration as end:
        return cast(Tensor, end.value)
    raise AssertionError("the run asked for more sweeps than its plan's evaluations")


def _finish(solving: Sampling, x0: Tensor) -> Tensor:
    """Send the last x̂₀ and take the restored picture."""
    try:
        solving.send(x0)
    except StopIteration as end:
        return cast(Tensor, end.value)
    raise AssertionError("the solver asked for more evaluations than its steps")
