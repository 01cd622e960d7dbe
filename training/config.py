"""How a model is trained, as data: one TOML file with a table for each stage.

``--preset tiny`` takes ``training/configs/tiny.toml``; ``--config FILE`` any other. Every key must be a field here and
every field without a default must be there, so that a misspelt key raises instead of silently meaning its default.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vlmir.config import from_dict
from vlmir.degradations import LABELS
from vlmir.errors import OptionError

__all__ = [
    "CONFIGS",
    "LoopConfig",
    "Phase",
    "PretrainConfig",
    "StageOneConfig",
    "StageTwoConfig",
    "TrainingConfig",
    "load_config",
]

CONFIGS = ("tiny", "base", "daclip")
"""Names of the configs that ship with the package."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """One run of the training loop: AdamW, a linear warm-up and half a cosine."""

    steps: int
    """Optimizer steps in all."""
    batch: int
    """Pictures a step, over all workers together."""
    rate: float
    """Peak of the learning rate."""
    warmup: int = 0
    """Steps of the linear warm-up."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; matrices and kernels only."""
    clip: float = 1.0
    """Greatest norm of the gradient; it is scaled down to it."""
    log_every: int = 50
    """Steps between two reports."""
    save_every: int = 250
    """Steps between two checkpoints."""
    validate_every: int = 0
    """Steps between two validations, where the stage has one; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no loop."""
        for name in ("batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.steps < 0 or self.rate <= 0 or len(self.betas) != 2:
            raise OptionError("steps must be at least 0, rate above 0, and betas two numbers.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """CLIP and BLIP from captioned photos, for presets without public weights."""

    clip: LoopConfig
    blip: LoopConfig
    patch_dropout: float = 0.5
    """Share of CLIP's patches hidden in training: faster, and less over-fitting (FLIP, Li et al. 2023)."""


@dataclass(frozen=True, kw_only=True)
class StageOneConfig:
    """The embedder (paper, section 3.2)."""

    stem: LoopConfig
    """First phase: the controller's convolutional path alone, where the preset has one."""
    joint: LoopConfig
    """Second phase: controller and LoRA caption encoder."""
    alpha: float = 0.5
    """Weight of the caption term (eq. 3)."""
    severity: float = 1.0
    """Weight, in the first phase, of what f_D says about how much is wrong."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A later stretch of stage 2 with larger crops (progressive learning: Zamir et al. 2022, section 3.3)."""

    begin: int
    """Its first step."""
    size: int
    """Side of the crops in pixels."""
    batch: int
    """Crops a step, over all workers together."""


@dataclass(frozen=True, kw_only=True)
class StageTwoConfig:
    """The sampler (paper, section 3.3)."""

    loop: LoopConfig
    objective: Literal["ml", "noise", "x0", "v"]
    """What the network is trained towards; the preset's prediction must follow from it."""
    norm: Literal["l1", "l2", "rms"]
    """Norm of a crop's error."""
    size: int
    """Side of the first crops in pixels; the loop's batch belongs to it."""
    phases: tuple[Phase, ...] = ()
    """Where later steps take larger crops, in order."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which ships."""
    at_T: float = 0.0
    """Share of the draws at t = T, where one evaluation gives the posterior mean; the others are uniform."""
    mix: dict[str, float]
    """Label → its share of the crops; they need not sum to 1."""
    real: dict[str, float] = dataclasses.field(default_factory=dict)
    """Label → share of real pairs among its crops, where there are any; others have ``real_share``."""
    real_share: float = 0.5
    """Share of real pairs among the crops of a label that has some."""
    null_share: float = 0.1
    """How often each condition is withheld, so that restoring without it works."""
    prototype_share: float = 0.15
    """How often f_D is the label's prototype, so that naming the damage by hand works; 1 where the preset says
    ``typical_damage``."""
    misjudged_share: float = 0.5
    """How often a clean crop comes with another picture's f_D, so that a photo judged wrongly is left as it is."""

    def __post_init__(self) -> None:
        """Refuse unknown labels and phases out of order."""
        unknown = sorted({*self.mix, *self.real} - set(LABELS))
        if unknown or not sum(self.mix.values()) > 0:
            raise OptionError(
                f"mix must give labels a share, some above 0; unknown labels: {unknown}."
            )
        begins = [phase.begin for phase in self.phases]
        if begins != sorted(begins):
            raise OptionError(f"The phases must begin one after the other, not at {begins}.")

    def crops(self, step: int) -> tuple[int, int]:
        """(Crops, side of a crop in pixels) of a step."""
        batch, size = self.loop.batch, self.size
        for phase in self.phases:
            if step >= phase.begin:
                batch, size = phase.batch, phase.size
        return batch, size


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All stages of one model."""

    preset: str
    """Architecture: a preset's name, or a JSON file."""
    pretrain: PretrainConfig | None = None
    """None where public weights are the start."""
    stage1: StageOneConfig
    stage2: StageTwoConfig


def load_config(name: str | Path, changes: Sequence[str] = ()) -> TrainingConfig:
    """A shipped config by name (see ``CONFIGS``), or any by the path of its TOML file.

    Args:
        name: Of the config.
        changes: ``key=value`` each, the key dotted, the value as TOML writes it (a bare word is a string).

    Raises:
        OptionError: There is no such config, it is no TOML, or a change is no ``key=value``.
        BundleError: A key is unknown, missing or of the wrong type; the message gives the path to it.
    """
    if name in CONFIGS:
        text = resources.files("training.configs").joinpath(f"{name}.toml").read_text("utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text("utf-8")
    else:
        raise OptionError(f"No config {str(name)!r}: give one of {CONFIGS} or a TOML file.")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"Config {str(name)!r} is no TOML: {error}.") from error
    for change in changes:
        _change(data, change)
    return from_dict(TrainingConfig, data)


def _change(data: dict[str, Any], change: str) -> None:
    """Set one value of nested data."""
    key, found, text = change.partition("=")
    if not found:
        raise OptionError(f"{change!r} is no KEY=VALUE, such as stage2.loop.steps=500.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *above, last = key.split(".")
    for part in above:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise OptionError(f"{change!r} goes into {part!r}, which is no table.")
    data[last] = value
