"""Architecture as data: frozen dataclasses and the strict loading of preset files.

A preset is a JSON file; every key must be a field and every field without a default must be there, so that a misspelt
key raises instead of silently meaning its default.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from vlmir.errors import BundleError

__all__ = [
    "PRESETS",
    "CaptionerConfig",
    "ClipConfig",
    "ClipTextConfig",
    "ClipVisionConfig",
    "EmbedderConfig",
    "LoraConfig",
    "Preset",
    "SamplerConfig",
    "ScheduleConfig",
    "UNetConfig",
    "from_dict",
    "load_preset",
]

PRESETS = ("tiny", "base", "daclip")
"""Names of the presets that ship with the package."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """The visual tower, a ViT (field names are open_clip's)."""

    image_size: int
    """Side of the square input in pixels."""
    patch_size: int
    """Side of a patch in pixels; divides ``image_size``."""
    width: int
    """Channels of a token."""
    layers: int
    """Transformer blocks."""
    head_width: int = 64
    """Channels of one attention head."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise BundleError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """The text tower, a causal transformer (field names are open_clip's)."""

    context_length: int
    """Tokens of a caption, padding included."""
    vocab_size: int
    """Entries of the tokenizer."""
    width: int
    """Channels of a token."""
    heads: int
    """Attention heads."""
    layers: int
    """Transformer blocks."""
    pool_type: Literal["argmax", "eos"] = "argmax"
    """Which token is the caption's: the highest id, or the one named by ``eos_id``."""
    eos_id: int = 2
    """Id of the end-of-text token where ``pool_type`` is ``eos``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A CLIP model (Radford et al. 2021)."""

    embed_dim: int
    """Length D of the joint embedding."""
    vision_cfg: ClipVisionConfig
    text_cfg: ClipTextConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The low-rank update of the LQ-caption encoder (Hu et al. 2022; paper, section 3.2)."""

    rank: int
    """Rank r of every update."""
    alpha: float
    """The update is scaled by alpha / r."""
    target_modules: tuple[str, ...]
    """Names of the text tower's modules that get an update."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """CLIP, the degradation controller and the LoRA caption encoder (paper, section 3.2)."""

    clip: ClipConfig
    lora: LoraConfig
    resize: Literal["crop", "squash"]
    """How a picture becomes a square: the reference's short side and centre crop, or both sides scaled to fit."""
    detail: bool
    """Whether the controller also sees a mosaic of full-resolution patches (three more input channels).

    A reduced picture hides noise, JPEG blocks and small blur; the mosaic shows them. Off for DA-CLIP's weights.
    """
    window: float | None = None
    """Side of the windows in the four corners that are judged beside the whole picture, as a share of its sides.

    What is wrong in one place shows better there, and the mean over all of them and their mirror images errs less than
    any one view. None: the whole alone.
    """
    orthogonal_labels: bool = False
    """Whether label embeddings are made orthogonal, for a CLIP that never met the labels' words."""
    typical_damage: bool = False
    """Whether f_D is the typical one of the label that a picture is judged to have, and not the picture's own.

    A sampler trained on few photos trusts what their own f_D says of them more than it may trust that of new ones.
    """
    tokenizer: Literal["bundle", "open_clip"] = "bundle"
    """Whose words the text tower reads: those of the bundle's ``captioner/tokenizer.json``, or open_clip's own."""
    hub: str | None = None
    """open_clip's ``model/pretrained`` name of public weights to start from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """A BLIP captioner (Li et al. 2022); where ``hub`` names public weights, the sizes are theirs."""

    image_size: int
    """Side of the square input in pixels."""
    patch_size: int
    """Side of a patch in pixels."""
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    heads: int
    """Attention heads of both towers."""
    max_tokens: int
    """The longest caption in tokens."""
    beams: int = 3
    """Beams of the caption search."""
    hub: str | None = None
    """Hugging Face name of a public checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """IR-SDE's cosine schedule (Luo et al. 2023)."""

    max_sigma: float = 50 / 255
    """Stationary standard deviation lambda in units of the 0…1 pixel range."""
    T: int = 100
    """Number of time steps."""
    eps: float = 0.005
    """a_T: what remains of x_0 in the mean at the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The conditional U-Net (MODEL.md section 2; DA-CLIP's ConditionalUNet when ``semantic`` is off)."""

    width: int
    """Channels of the first level."""
    multipliers: tuple[int, ...]
    """Channels of each level's output over ``width``."""
    attention: tuple[Literal["none", "linear", "transformer"], ...]
    """Attention of each level; the middle always is a transformer."""
    context_dim: int
    """Length D of the embeddings f_I, f_T and f_D."""
    semantic: bool
    """Whether the transformers hold SCA (text) before ICA (image)."""
    self_attention: bool = True
    """Whether the transformers mix pixels. Off, the network is local: tiles agree with the whole."""
    stem_stride: int = 1
    """Pixel-unshuffle factor before the stem (1: none)."""
    stem_kernel: int = 7
    """Side of the stem's kernel, odd."""
    head_dim: int = 32
    """Channels of one attention head."""
    more_blocks: tuple[int, ...] = ()
    """ResBlocks at each level, on its way down and on its way up, beyond the two of DA-CLIP; empty: none."""
    unit_scale: bool = False
    """Whether pixels are brought to mean 0 and deviation 1 (and the output back): small raw values leave SiLU almost
    linear and slow down learning. Off for DA-CLIP's weights."""

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.multipliers):
            raise BundleError("attention and multipliers must name the same number of levels.")
        if self.more_blocks and len(self.more_blocks) != len(self.multipliers):
            raise BundleError("more_blocks and multipliers must name the same number of levels.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The restoring diffusion model and how it is run by default."""

    unet: UNetConfig
    schedule: ScheduleConfig
    prediction: Literal["noise", "x0", "v"]
    """What the network's output means; see :class:`vlmir.diffusion.IRSDE`."""
    solver: str
    """Default solver."""
    steps: int
    """Default number of network evaluations."""
    tile: int
    """Default tile side in pixels."""
    overlap: int
    """Pixels that neighbouring tiles share."""
    last: int | None = None
    """Time index of a sample's last evaluation; None: as near to 0 as the steps reach.

    A network that was trained shortly takes the little noise that is left below for texture: ending earlier is nearer
    to the truth and looks better.
    """
    wide: tuple[str, ...] = ()
    """Labels of damage that spans wide areas, whose mean is sought at half the size, too; see
    :meth:`vlmir.sampling.DiffusionSampler.begin`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """One architecture: three parts and the labels they know.

    A bundle may lack the captioner, and its embedder the LoRA updates: DA-CLIP's weights bring neither.
    """

    name: str
    labels: tuple[str, ...]
    """Degradation labels in the order of the probabilities."""
    captioner: CaptionerConfig
    embedder: EmbedderConfig
    sampler: SamplerConfig

    def to_dict(self) -> dict[str, Any]:
        """The preset as JSON-ready data; :func:`from_dict` reads it back."""
        return dataclasses.asdict(self)


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build the frozen dataclass ``cls`` from JSON data.

    Raises:
        BundleError: A key is unknown or missing, or a value has the wrong type; the message gives the path to it.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where or cls.__name__}: expected an object, got {data!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise BundleError(f"{where or cls.__name__}: unknown keys {unknown}, missing {missing}.")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _value(hints[k], v, f"{where}.{k}".lstrip(".")) for k, v in data.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``, or a :class:`BundleError` that names the place."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[Any]", kind), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(args[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and value in args:
        return value
    if origin is types.UnionType:
        return None if value is None else _value(args[0], value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise BundleError(f"{where}: {value!r} is not a valid {getattr(kind, '__name__', kind)}.")


def load_preset(name: str | Path) -> Preset:
    """Load a shipped preset by name (see ``PRESETS``) or any preset by its JSON file's path.

    Raises:
        BundleError: No such preset, no JSON, or a key that is unknown, missing or of the wrong type.
    """
    if name in PRESETS:
        text = resources.files("vlmir.presets").joinpath(f"{name}.json").read_text("utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            raise BundleError(f"No preset {str(name)!r}: give one of {PRESETS} or a JSON file.")
        text = path.read_text("utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BundleError(f"Preset {str(name)!r} is no JSON: {error}.") from error
    return from_dict(Preset, data)
