"""The sampler in process: one U-Net, solvers as generators, tiles blended at every step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmir.config import SamplerConfig
from vlmir.diffusion import IRSDE, SOLVERS, Sampling, solver_named
from vlmir.errors import OptionError
from vlmir.image.tiles import TilePlan, plan_tiles
from vlmir.nn import Conditioning, Damage, UNet
from vlmir.options import SAMPLE_STEPS, RestoreOptions
from vlmir.sweeps import Evaluation, SampleStep, Sweep, Work, evaluate, padded

__all__ = [
    "CALL_PIXELS",
    "MIRRORS",
    "Adapted",
    "Conditions",
    "DiffusionSampler",
    "PictureRun",
    "Plan",
    "SampleStep",
    "finish",
    "plan_of",
]

FAINTEST = 0.05
"""Least share a_t of x₀ in a state from which a network that predicts noise tells x₀: its error is magnified 1/a_t."""

CLEAR = 0.5
"""The same on the way to a sample, where a later state is to be had: from there on x̂₀ passes for the mean."""

MEAN_STATES = 4
"""Evaluations that lead a network which predicts noise to a state so clear: the fewest that cost nothing (a test with
the best possible network compares them with a sample's way)."""

CALL_PIXELS = 512 * 512
"""Most pixels in one network call, unless one window has more.

On a processor, pixels a second grow up to here (by a sixth from one window of 256² to four) and fall beyond (by 4 %
from one window of 512² to two).
"""

WIDE_SHARE = 0.5
"""Weight of what is seen at half the size, where that is sought: neither of the two views is better than their mean."""

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


class Adapted(NamedTuple):
    """A network for one kind of damage."""

    label: str
    damage: Damage
    """For which pictures it is."""
    unet: UNet
    """It shares all weights but those that its adapter changed with the network for every damage."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one or more pictures are sampled."""

    steps: int
    """Network evaluations of the solver, 1…T; at realism 0 ``mean_states`` are made."""
    solver: str
    """A key of ``SOLVERS``."""
    realism: float
    """0: the posterior mean, the most faithful picture; 1: a sample, the most real; between: the line joining them."""
    tile: int | None
    """Tile side in pixels; 0 for none, None for the preset's."""
    ensemble: bool = False
    """Whether each evaluation is the mean over the picture's mirror images."""
    mean_states: int = 1
    """Evaluations that the posterior mean takes, see :attr:`DiffusionSampler.mean_states`."""
    wide: bool = False
    """Whether the mean is sought at half the size, too, for damage that spans wide areas."""
    call_pixels: int = CALL_PIXELS
    """Most pixels in one call of the network by :meth:`DiffusionSampler.sample`; a window with more goes alone."""

    @property
    def mirrors(self) -> tuple[tuple[int, ...], ...]:
        """The axes along which the picture is flipped, for each image over which an evaluation is the mean.

        Where damage spans wide areas, an upside-down picture is another one: haze thickens and light comes from above.
        """
        if not self.ensemble:
            return MIRRORS[:1]
        return MIRRORS[:2] if self.wide else MIRRORS

    @property
    def states(self) -> int:
        """Evaluations of the whole picture: those that give the mean, or all for a sample."""
        return self.steps if self.realism > 0 else self.mean_states

    @property
    def evaluations(self) -> int:
        """Network evaluations in all, that at half the size included."""
        return self.states + self.wide


class DiffusionSampler:
    """Restores pictures of one size, alone or several at a time; each result is the same either way."""

    def __init__(self, unet: UNet, config: SamplerConfig, adapted: Sequence[Adapted] = ()) -> None:
        """Restore with a network.

        Args:
            unet: For every kind of damage.
            config: How it is run.
            adapted: Networks that know one kind of damage better.
        """
        self.unet = unet
        self.config = config
        self.adapted = tuple(adapted)
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
    def wide_labels(self) -> tuple[str, ...]:
        """Labels of damage for which :attr:`Plan.wide` helps."""
        return self.config.wide

    @property
    def mean_states(self) -> int:
        """Evaluations that the posterior mean takes: one, unless the network predicts noise.

        From x_T, where all but nothing is left of x₀, such a network cannot tell x₀; from a state on the way it can.
        """
        return 1 if self.config.prediction != "noise" else MEAN_STATES

    @property
    def solvers(self) -> tuple[str, ...]:
        """Names of the solvers."""
        return tuple(SOLVERS)

    def unet_for(self, f_D: Tensor | None) -> UNet:
        """The network that restores pictures with such damage (f_D of a picture, D; None where it is not known)."""
        if f_D is not None:
            for one in self.adapted:
                if one.damage.includes(f_D):
                    return one.unet
        return self.unet

    def tile_plan(self, height: int, width: int, tile: int | None) -> TilePlan:
        """The windows of a picture; one window where it fits, or with ``tile=0``."""
        side = self.config.tile if tile is None else tile or max(height, width)
        align = min(self.unet.multiple, side)
        overlap = min(self.config.overlap, max(0, side // 2 - align))
        return plan_tiles(height, width, tile=side, overlap=overlap, align=align)

    def cost(self, height: int, width: int, plan: Plan) -> int:
        """Pixels that the network reads to restore a picture, over all windows, mirror images and evaluations."""
        pixels = plan.states * self._window_pixels(height, width, plan)
        if plan.wide:
            pixels += self._window_pixels(*_halved(height, width), plan)
        return pixels * len(plan.mirrors)

    def _window_pixels(self, height: int, width: int, plan: Plan) -> int:
        windows = self.tile_plan(height, width, plan.tile).windows
        return sum(window.height * window.width for window in windows)

    def plan(self, options: RestoreOptions) -> Plan:
        """The choices of ``options`` made explicit; what is not chosen is the preset's.

        Raises:
            OptionError: The solver is unknown, or there are too many steps.
        """
        return plan_of(
            options,
            solver=self.config.solver,
            steps=self.config.steps,
            solvers=self.solvers,
            most_steps=self.most_steps,
            mean_states=self.mean_states,
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
            B restored pictures, H×W×3, clipped to 0…1; they are the caller's to change.

        Raises:
            OptionError: Solver or steps are impossible.
            VlmirError: The network produced values that are no numbers.
        """
        # Views: the pictures are only read, and what is made of them then lies in memory as they do.
        runs = [
            self.begin(torch.from_numpy(picture).permute(2, 0, 1), known, seed, plan)
            for picture, known, seed in zip(pictures, conditions, seeds, strict=True)
        ]
        for done in range(plan.evaluations):
            yield from self._make([next(run) for run in runs], done, plan.call_pixels)
        return [_result(run).permute(1, 2, 0).contiguous().numpy() for run in runs]

    def begin(self, mu: Tensor, conditions: Conditions, seed: int, plan: Plan) -> PictureRun:
        """Restore one picture; whoever drives the run makes the network calls.

        It has its own solver and its own noise, drawn over the whole picture from its seed, so its result does not
        depend on what shares a network call with it, nor on the tiling beyond the network's field of view.

        Realism follows Freirich et al. (2021, arXiv 2107.02555): between the posterior mean and a sample the best
        trade of error against naturalness is a straight line.

        With ``plan.wide`` the mean is moved half the way to what the network makes of the picture at half its size,
        where it sees twice as far: how much haze there is, or how much light is missing, is a matter of wide areas.
        Finer detail than that size holds is not touched.

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
        unet = self.unet_for(conditions.f_D)
        work = Work(
            mu=mu,
            unet=unet,
            conditioning=_prepare(unet, conditions),
            tiles=self.tile_plan(mu.shape[1], mu.shape[2], plan.tile),
            mirrors=plan.mirrors,
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
        if plan.wide:
            yield from self._widen(sweep.x0, seed, plan, work)
        if plan.realism == 0 and plan.states == 1:
            return sweep.x0.clamp_(0, 1)
        answers = [sweep.x0]
        del first, sweep  # a picture held for nothing costs as much memory as one that is needed
        restored = yield from self._follow(solving, answers, plan, work)
        return restored.clamp_(0, 1)

    def _widen(self, x0: Tensor, seed: int, plan: Plan, work: Work) -> Generator[Sweep, None, None]:
        """Move a mean, in place, towards that of the picture at half its size."""
        mu = _at_half(work.mu)
        tiles = self.tile_plan(mu.shape[1], mu.shape[2], plan.tile)
        generator = torch.Generator().manual_seed(seed)
        first = mu if self.config.prediction == "x0" else self._prior(mu, generator)
        sweep = self._predict(first, self._start(plan), replace(work, mu=mu, tiles=tiles))
        yield sweep
        missing = sweep.x0.sub_(_at_half(x0)).mul_(WIDE_SHARE)
        for plane, small in zip(
            x0, missing, strict=True
        ):  # one after the other: pictures may be big
            plane += F.interpolate(small[None, None], plane.shape, mode="bilinear")[0, 0]

    def _make(
        self, sweeps: Sequence[Sweep], done: int, most: int
    ) -> Generator[SampleStep, None, None]:
        """Make sweeps over pictures of one size, after ``done`` others; the same windows of all share a call."""
        while not sweeps[0].complete:
            asked = self._take(sweeps, most)
            outputs = evaluate([one for _, one in asked])
            for begin in range(0, len(asked), len(sweeps)):
                same = slice(begin, begin + len(sweeps))
                given = zip(asked[same], outputs[same], strict=True)
                if all([sweep.give(one, output) for (sweep, one), output in given]):
                    step, share, x0 = sweeps[0].told(done)
                    if x0 is not None and len(sweeps) > 1:
                        x0 = torch.stack([sweep.x0 for sweep in sweeps])
                    yield SampleStep(step, share, x0)

    def _take(self, sweeps: Sequence[Sweep], most: int) -> list[tuple[Sweep, Evaluation]]:
        """The evaluations of the next call: of each picture as many as it may hold, those of one window together."""
        asked = list[tuple[Sweep, Evaluation]]()
        multiple, size = self.unet.multiple, sweeps[0].size
        assert size is not None
        height, width = shape = padded(size, multiple)
        while not asked or (len(asked) + len(sweeps)) * height * width <= most:
            asked += [(sweep, sweep.take()) for sweep in sweeps]
            size = sweeps[0].size
            if size is None or padded(size, multiple) != shape:
                break
        return asked

    def _follow(
        self, solving: Sampling, answers: list[Tensor], plan: Plan, work: Work
    ) -> Generator[Sweep, None, Tensor]:
        """The solver's sample, or less of it; its first request was answered.

        Each answer is let go when it has been given, but for the mean where less than a sample is asked for: the first
        answer that is not all but lost in the noise that a network predicts.
        """
        mean, seen = (answers[0] if plan.realism < 1 else None), self._start(plan)
        clear = self._greatest(CLEAR)
        for _ in range(1, plan.states):
            x, t = solving.send(answers.pop())
            sweep = self._predict(x, t, work)
            yield sweep
            answers.append(sweep.x0)
            if mean is not None and seen > clear:
                mean, seen = sweep.x0, t
        sample = _finish(solving, answers.pop())
        return sample if mean is None else torch.lerp(mean, sample, plan.realism)

    def _predict(self, x: Tensor, t: int, work: Work) -> Sweep:
        """The sweep that finds x̂₀ in a state."""
        return Sweep(x, t, work)

    def _solve(self, mu: Tensor, seed: int, plan: Plan) -> Sampling:
        generator = torch.Generator().manual_seed(seed)
        x_T = self._prior(mu, generator)
        solver, start = solver_named(plan.solver), self._start(plan)
        last = self.config.last if plan.realism > 0 else min(start, self._greatest(CLEAR))
        return solver(x_T, mu, self.schedule, plan.states, generator, start=start, last=last)

    def _prior(self, mu: Tensor, generator: torch.Generator) -> Tensor:
        """A state x_T of a picture."""
        return self.schedule.prior(mu, torch.randn(mu.shape, generator=generator))

    def _start(self, plan: Plan) -> int:
        """The time index of the first evaluation: T, but for the only one of a network that predicts noise.

        Several begin at T there, too, faint as x₀ is: x_T is drawn around μ, which is true of T alone. Shown that state
        as a later one, the network finds no residual where there must be some, takes the tones of μ for right, and
        leaves haze in place. What its error adds in the first steps is made good in the others.
        """
        return self.schedule.T if plan.states > 1 else self._greatest(FAINTEST)

    def _greatest(self, share: float) -> int:
        """The greatest time index at which so much of x₀ is left as the network needs; T if it predicts no noise."""
        T = self.schedule.T
        if self.config.prediction != "noise":
            return T
        return max(t for t in range(1, T + 1) if self.schedule.a(t) >= share)


def plan_of(
    options: RestoreOptions,
    *,
    solver: str,
    steps: int,
    solvers: Sequence[str],
    most_steps: int,
    mean_states: int,
) -> Plan:
    """The choices of ``options`` made explicit.

    Args:
        options: The choices; what is not chosen follows from the rest.
        solver: Where none is chosen.
        steps: Where neither steps nor realism are chosen.
        solvers: Names that may be chosen.
        most_steps: The greatest number of steps.
        mean_states: Evaluations that the posterior mean takes.

    Raises:
        OptionError: The solver is unknown, or there are too many steps.
    """
    if options.solver is not None and options.solver not in solvers:
        raise OptionError(f"Unknown solver {options.solver!r}; choose from {', '.join(solvers)}.")
    if options.steps is not None and options.steps > most_steps:
        raise OptionError(f"steps must be at most {most_steps}, not {options.steps}.")
    default = SAMPLE_STEPS if options.realism else steps
    made = default if options.steps is None else options.steps
    realism = float(made > 1) if options.realism is None else options.realism
    return Plan(
        steps=made,
        solver=options.solver or solver,
        realism=realism,
        tile=options.tile,
        ensemble=options.ensemble,
        mean_states=mean_states,
    )


def finish(run: Generator[SampleStep, None, list[Pixels]]) -> list[Pixels]:
    """Run :meth:`DiffusionSampler.sample` to its end and return the pictures."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return cast("list[Pixels]", end.value)


@torch.inference_mode()
def _prepare(unet: UNet, conditions: Conditions) -> Conditioning:
    named = zip(("text", "image", "degradation"), conditions, strict=True)
    f_T, f_I, f_D = ((unet.null[name] if f is None else f)[None] for name, f in named)
    return unet.prepare(f_T, f_I, f_D, 1)


def _halved(height: int, width: int) -> tuple[int, int]:
    return max(1, height // 2), max(1, width // 2)


def _at_half(picture: Tensor) -> Tensor:
    """A picture (3×H×W) at half its size, each pixel the mean of those that it stands for."""
    height, width = picture.shape[1:]
    return F.interpolate(picture[None], _halved(height, width), mode="area")[0]


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
