"""What a caller may choose about a restoration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from vlmir.errors import OptionError

__all__ = ["PRECISIONS", "SAMPLE_STEPS", "Precision", "RestoreOptions"]

Precision: TypeAlias = Literal["auto", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Of a network: bfloat16, float32, or ``auto`` for bfloat16 where the processor multiplies in it."""

SAMPLE_STEPS = 20
"""Network evaluations where realism is asked for and steps are not named."""


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """Options of one restoration; the defaults give the most faithful picture in one network evaluation.

    Raises:
        OptionError: A number is out of range, or options contradict each other. Names (solver, degradation, format)
            are checked where they are used.
    """

    steps: int | None = None
    """The solver's network evaluations, at least 1; None: the bundle's default, or 20 where realism is asked for."""
    solver: str | None = None
    """Name of the solver; None: the bundle's default."""
    seed: int = 0
    """Seed of the noise, 0…2⁶³−1. At realism 0 there is none."""
    realism: float | None = None
    """0: the posterior mean (most faithful) … 1: a sample (most natural). None: 0 for one step, 1 for more.

    The first step gives the mean, so at 0 no other is made.
    """
    ensemble: bool = False
    """Average over the picture and its mirror images at every evaluation: less error for up to four times the work."""
    caption: str | None = None
    """What the picture shows, in place of the captioner's sentence."""
    use_caption: bool = True
    """False: restore without a caption."""
    degradation: str | None = None
    """A label in place of the one the picture is judged to have."""
    strength: float = 1.0
    """Share of the correction that is applied, 0 (none) … 1 (all)."""
    tile: int | None = None
    """Tile side in pixels, at least 128; 0: never tile; None: the bundle's default."""
    format: str | None = None
    """Format of the result; None: the source's."""
    quality: int | None = None
    """Quality of JPEG and WebP, 1…100; None: 95."""
    lossless: bool = False
    """Write WebP without loss."""

    def __post_init__(self) -> None:
        """Check ranges and contradictions."""
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps must be at least 1, not {self.steps}.")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed must be 0…2⁶³−1, not {self.seed}.")
        for name in ("realism", "strength"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name} must be 0…1, not {value}.")
        if self.caption is not None and not self.use_caption:
            raise OptionError("A caption was given and forbidden at once; choose one.")
        if self.tile is not None and self.tile != 0 and self.tile < 128:
            raise OptionError(f"tile must be 0 (never) or at least 128 pixels, not {self.tile}.")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise OptionError(f"quality must be 1…100, not {self.quality}.")
