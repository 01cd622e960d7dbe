"""The river: decode, caption, embed, sample. One orchestration over three narrow interfaces.

The library, the embedded server and the cluster run this same code with different stages plugged in. It computes
nothing itself and imports no PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vlmir.errors import OptionError, UnavailableError
from vlmir.image import Image, Limits, check_encodable, decode, read_file
from vlmir.options import Precision, RestoreOptions
from vlmir.report import Inspection, Progress, Report, Restoration

if TYPE_CHECKING:
    from vlmir.bundle import Bundle
    from vlmir.image.tiles import TilePlan
    from vlmir.memory import MemoryPlanner
    from vlmir.sampling import Conditions, Plan, SampleStep
    from vlmir.vlm.embedder import ImageEmbedding

__all__ = [
    "Captioner",
    "Embedder",
    "Inspection",
    "Progress",
    "Report",
    "Restoration",
    "RestoreOptions",
    "Restorer",
    "Sampler",
    "Source",
]

Pixels = npt.NDArray[np.float32]
Source = bytes | Path | Image | npt.NDArray[Any]
"""A picture: an encoded file's bytes, its path, a decoded image, or an array of 8- or 16-bit samples."""

CLEAN = "clean"
SURE_CLEAN = 0.6
"""From this probability of ``clean`` on a picture is left untouched …"""
MAYBE_CLEAN = 0.4
"""… and up to this one it is restored in full; between, in part."""


class Captioner(Protocol):
    """Says what a picture shows."""

    def caption(self, pixels_HWC: Pixels) -> str:
        """H×W×3, 0…1 → one sentence."""


class Embedder(Protocol):
    """Turns pictures, captions and labels into conditions."""

    labels: tuple[str, ...]

    def embed_image(self, pixels_HWC: Pixels) -> ImageEmbedding:
        """H×W×3, 0…1 → content, damage and label probabilities."""

    def embed_captions(self, captions: Sequence[str]) -> Any:
        """B captions → f_T, B×D."""

    def embed_label(self, label: str) -> Any:
        """A label → its typical f_D, D."""


class Sampler(Protocol):
    """Restores pixels under conditions."""

    @property
    def reads_captions(self) -> bool:
        """Whether a caption has an effect."""

    @property
    def wide_labels(self) -> tuple[str, ...]:
        """Labels of damage that spans wide areas, for which a plan should be ``wide``."""

    @property
    def mean_states(self) -> int:
        """Evaluations that the posterior mean takes."""

    @property
    def solvers(self) -> tuple[str, ...]:
        """Names of the solvers."""

    @property
    def most_steps(self) -> int:
        """The greatest number of steps."""

    def tile_plan(self, height: int, width: int, tile: int | None) -> TilePlan:
        """How a picture is cut."""

    def sample(
        self,
        pictures: Sequence[Pixels],
        conditions: Sequence[Conditions],
        seeds: Sequence[int],
        plan: Plan,
    ) -> Generator[SampleStep, None, list[Pixels]]:
        """Restore B pictures of one size; the results are the caller's to change."""


@dataclass
class _Clock:
    """Milliseconds of each stage."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - began)

    def _add(self, stage: str, seconds: float) -> None:
        spent = self.milliseconds.get(stage, 0.0) + seconds * 1000
        self.milliseconds[stage] = round(spent, 3)


class _Warnings(list[str]):
    """What was not as asked or expected."""

    degraded = False
    """Whether a stage could not be reached."""

    def missing(self, text: str) -> None:
        """Add what a stage that cannot be reached has led to."""
        self.append(text)
        self.degraded = True


class Restorer:
    """Restores pictures. Safe to share between threads: it keeps no state between calls."""

    def __init__(
        self,
        *,
        captioner: Captioner | None,
        embedder: Embedder,
        sampler: Sampler,
        release: str,
        digests: dict[str, str],
        solver: str,
        steps: int,
        device: str = "",
        limits: Limits | None = None,
        unconditioned: bool = False,
        planner: MemoryPlanner | None = None,
    ) -> None:
        """Join three stages.

        Args:
            captioner: Says what a picture shows; None: pictures are restored without, or with the user's captions.
            embedder: Conditions.
            sampler: The restoring model.
            release: Name and version of the weights.
            digests: Part → sha256.
            solver: Solver where none is asked for.
            steps: Network evaluations where neither steps nor realism are asked for.
            device: Where the sampler runs, and in which precision; for people to read.
            limits: What pictures are accepted; None: the library's.
            unconditioned: Whether pictures are restored without conditions while the embedder cannot be reached; else
                that is an error.
            planner: Fits each picture into the memory; None: the sampler sees to that itself.
        """
        self._planner = planner
        self._unconditioned = unconditioned
        self._captioner, self._embedder, self._sampler = captioner, embedder, sampler
        self.release, self.digests, self.device = release, digests, device
        self.limits = limits or Limits()
        self.labels, self.solvers = embedder.labels, sampler.solvers
        self.mean_states = sampler.mean_states
        self._solver, self._steps = solver, steps

    @classmethod
    def load(
        cls,
        bundle: str | Path = "tiny",
        *,
        limits: Limits | None = None,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Restorer:
        """A restorer with all stages in this process.

        Args:
            bundle: Name of a shipped bundle, or the path of a bundle folder.
            limits: What pictures are accepted; None: the library's.
            device: Where the sampler runs: ``auto`` for a GPU where there is one, or ``cpu``, ``cuda:1`` and the like.
            precision: Of the sampler, and of the views that vote on the label: ``fp32``, ``bf16``, or ``auto`` for
                bfloat16 where the processor multiplies in it.

        Raises:
            BundleError: There is none, or it is damaged.
            OptionError: The device cannot be used.
        """
        from vlmir.bundle import load_bundle

        opened = load_bundle(bundle)
        return cls.from_bundle(opened, limits=limits, device=device, precision=precision)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        limits: Limits | None = None,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Restorer:
        """A restorer with all stages of an opened bundle in this process; see :meth:`load`."""
        from vlmir.compute import Compute
        from vlmir.memory import MemoryPlanner
        from vlmir.parts import build_captioner, build_embedder, build_sampler

        config, compute = bundle.preset.sampler, Compute.choose(device, precision)
        sampler = build_sampler(bundle, compute)
        captioner = None
        if "captioner" in bundle.digests:
            captioner = build_captioner(bundle)
        return cls(
            captioner=captioner,
            embedder=build_embedder(bundle, Compute.choose("cpu", precision).dtype),
            sampler=sampler,
            release=bundle.release,
            digests=bundle.digests,
            solver=config.solver,
            steps=config.steps,
            device=str(compute),
            limits=limits,
            planner=MemoryPlanner(sampler),
        )

    def restore(self, image: Source, options: RestoreOptions | None = None) -> Restoration:
        """Restore one picture.

        Raises:
            ImageError: The picture cannot be read.
            LimitError: It is too big, for the limits or for the memory that is free.
            OptionError: An option is impossible.
        """
        stream = self.stream(image, options)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                restoration: Restoration = end.value
                return restoration

    def stream(
        self, image: Source, options: RestoreOptions | None = None, *, previews: bool = False
    ) -> Generator[Progress, None, Restoration]:
        """Restore one picture step by step; closing the generator cancels.

        Args:
            image: The picture.
            options: Choices; None: the defaults.
            previews: Whether a progress carries a preview after each whole evaluation.

        Yields:
            A :class:`Progress` after each window of each network evaluation.

        Returns:
            The restoration.

        Raises:
            ImageError: The picture cannot be read.
            LimitError: It is too big, for the limits or for the memory that is free.
            OptionError: An option is impossible.
        """
        options = options or RestoreOptions()
        plan = self._plan(options)
        clock, warnings = _Clock(), _Warnings()
        with clock("decode"):
            source = self._open(image)
        check_encodable(
            source, format=options.format, quality=options.quality, lossless=options.lossless
        )
        if self._planner is not None:  # the damage is not known yet: for the most that it may take
            plan = replace(plan, wide=bool(self._sampler.wide_labels))
            plan = self._planner.fit(source.height, source.width, plan)
        caption = self._caption(source, options, clock, warnings)
        with clock("embed"):
            known, degradations, label = self._look(source, caption, options, warnings)
        plan = replace(plan, wide=label in self._sampler.wide_labels)
        share = options.strength * _damaged(degradations, options.degradation)
        tiles = self._sampler.tile_plan(source.height, source.width, plan.tile)
        restored, steps = source.pixels, 0
        if share > 0:
            steps = plan.evaluations
            run = self._sampler.sample([source.pixels], [known], [options.seed], plan)
            sampled = yield from _relay(run, steps, previews, clock)
            restored = _moved(source.pixels, sampled, share)
            if plan.realism == 0 and (options.steps or 1) > 1:
                made = (
                    "one evaluation gives"
                    if plan.states == 1
                    else f"{plan.states} evaluations give"
                )
                warnings.append(
                    f"Steps have no effect at realism 0, where {made} the mean; raise the realism."
                )
        elif options.strength > 0 and options.degradation is None:
            warnings.append(
                "The picture looks undamaged and was left as it is; name a degradation to restore it."
            )
        if source.grey:
            restored = np.repeat(restored.mean(axis=2, keepdims=True), 3, axis=2)
        report = Report(
            caption=None if known.f_T is None else caption,
            degradations=degradations,
            degradation=label,
            release=self.release,
            digests=self.digests,
            seed=options.seed,
            solver=plan.solver,
            steps=steps,
            realism=plan.realism,
            ensemble=plan.ensemble,
            strength=share,
            width=source.width,
            height=source.height,
            tiles=len(tiles.windows),
            tile_size=max(tiles.windows[0].height, tiles.windows[0].width),
            milliseconds=clock.milliseconds,
            warnings=tuple(warnings),
        )
        return Restoration(
            image=source.with_pixels(restored),
            report=report,
            options=options,
            degraded=warnings.degraded,
        )

    def check(self, options: RestoreOptions) -> None:
        """Refuse options with which no picture could be restored, before any picture is read.

        Raises:
            OptionError: A name is unknown, or there are too many steps.
        """
        self._plan(options)

    def inspect(self, image: Source) -> Inspection:
        """Say what a picture shows and what is wrong with it, without restoring it.

        Raises:
            ImageError: The picture cannot be read.
            LimitError: It is too big.
        """
        clock = _Clock()
        with clock("decode"):
            source = self._open(image)
        caption = None
        if self._captioner is not None:
            with clock("caption"):
                caption = self._captioner.caption(source.pixels)
        with clock("embed"):
            seen = self._embedder.embed_image(source.pixels)
        return Inspection(
            caption=caption,
            degradations=seen.degradations,
            degradation=seen.degradation,
            width=source.width,
            height=source.height,
            milliseconds=clock.milliseconds,
        )

    def _plan(self, options: RestoreOptions) -> Plan:
        """The choices made explicit, or an :class:`OptionError` before any work is done."""
        from vlmir.sampling import plan_of

        if options.degradation is not None and options.degradation not in self.labels:
            known = ", ".join(self.labels)
            raise OptionError(f"Unknown degradation {options.degradation!r}; choose from {known}.")
        return plan_of(
            options,
            solver=self._solver,
            steps=self._steps,
            solvers=self.solvers,
            most_steps=self._sampler.most_steps,
            mean_states=self.mean_states,
        )

    def _open(self, image: Source) -> Image:
        """The picture decoded, its limits checked first."""
        if isinstance(image, Image):
            return _within_range(image)
        if isinstance(image, np.ndarray):
            return Image.from_levels(image)
        # One byte more than the limit is enough to refuse the rest.
        data = read_file(image, self.limits.max_bytes + 1) if isinstance(image, Path) else image
        return decode(data, self.limits)

    def _caption(
        self, source: Image, options: RestoreOptions, clock: _Clock, warnings: _Warnings
    ) -> str | None:
        """The caption that guides: the user's or the captioner's; None, with a warning where one was expected."""
        if not options.use_caption:
            return None
        if not self._sampler.reads_captions:
            if options.caption is not None:
                warnings.append("The caption had no effect: these weights do not read captions.")
            return None
        if options.caption is not None:
            return options.caption or None
        if self._captioner is None:
            warnings.append(
                "Restored without a caption: these weights bring no captioner; give one."
            )
            return None
        with clock("caption"):
            try:
                return self._captioner.caption(source.pixels) or None
            except UnavailableError as error:
                warnings.missing(f"Restored without a caption: {error}")
                return None

    def _look(
        self, source: Image, caption: str | None, options: RestoreOptions, warnings: _Warnings
    ) -> tuple[Conditions, dict[str, float], str]:
        """What steers the sampler, the probability of each label, and the label acted upon ("" for none)."""
        from vlmir.sampling import Conditions

        named = options.degradation
        try:
            seen = self._embedder.embed_image(source.pixels)
            f_T = None if caption is None else self._embedder.embed_captions([caption])[0]
            f_D = seen.f_D if named is None else self._embedder.embed_label(named)
        except UnavailableError as error:
            if not self._unconditioned:
                raise
            warnings.missing(f"Restored without caption and recognition of the damage: {error}")
            return Conditions(None, None, None), {}, named or ""
        return Conditions(f_T, seen.f_I, f_D), seen.degradations, named or seen.degradation


def _within_range(image: Image) -> Image:
    """The picture with floats beyond 0…1 clipped: the networks have only ever seen pictures that files can hold."""
    if image.pixels.min() >= 0 and image.pixels.max() <= 1:
        return image
    return image.with_pixels(np.clip(image.pixels, 0, 1))


def _relay(
    run: Generator[SampleStep, None, list[Pixels]], steps: int, previews: bool, clock: _Clock
) -> Generator[Progress, None, Pixels]:
    """Pass progress on, timing only the sampler's own work."""
    try:
        while True:
            with clock("sample"):
                try:
                    done = next(run)
                except StopIteration as end:
                    return np.asarray(end.value[0])
            preview = None
            if previews and done.x0 is not None:
                # A remote sampler's is an array already.
                preview = np.clip(np.asarray(done.x0[0]).transpose(1, 2, 0), 0, 1, order="C")
            told = Progress(step=done.step, steps=steps, share=done.share, preview=preview)
            del done, preview  # or the last x̂₀ would be held all through the next network call
            yield told
            del told
    finally:
        run.close()


def _moved(source: Pixels, sampled: Pixels, share: float) -> Pixels:
    """Source + share · (sampled − source), written over ``sampled`` where that can be: pictures may be big."""
    moved = np.subtract(sampled, source, out=sampled if sampled.flags.writeable else None)
    moved *= np.float32(share)
    moved += source
    return moved


def _damaged(degradations: dict[str, float], named: str | None) -> float:
    """Share of the correction to apply: 1 for a damaged picture, 0 for one that is surely clean or named so."""
    if named is not None:
        return float(named != CLEAN)
    clean = degradations.get(CLEAN, 0.0)
    return float(np.clip((SURE_CLEAN - clean) / (SURE_CLEAN - MAYBE_CLEAN), 0, 1))
