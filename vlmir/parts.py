"""The three parts of a bundle as networks: packed into files, and built from them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlmir.bundle import FORMAT, PARTS, REQUIRED, Bundle, digest_of, load_bundle
from vlmir.compute import REFERENCE, Compute
from vlmir.config import Preset
from vlmir.daclip import load_strictly
from vlmir.errors import BundleError
from vlmir.nn import Adapter, UNet, adapted, join_adapters, split_adapters
from vlmir.sampling import Adapted, DiffusionSampler
from vlmir.vlm.blip import Blip
from vlmir.vlm.captioner import BlipCaptioner, build_blip
from vlmir.vlm.clip import DegradationCLIP, build_clip, load_lora, lora_tensors, merge_lora
from vlmir.vlm.clip_towers import Clip
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.tokenizer import CaptionTokenizer, ClipTokenizer, Tokenizer

__all__ = [
    "build_captioner",
    "build_embedder",
    "build_frozen_clip",
    "build_sampler",
    "build_tokenizer",
    "build_unet",
    "count_parameters",
    "fill_embedder",
    "has_lora",
    "save_adapters",
    "save_bundle",
]

MODEL = "model.safetensors"
_TIED = r"^text_decoder\.cls\.predictions\.(decoder\.(weight|bias))$"
"""BLIP's output layer: the same tensors as its word embeddings and its bias, stored once."""


def build_captioner(bundle: Bundle, *, trainable: bool = False) -> BlipCaptioner:
    """The captioner of a bundle.

    Args:
        bundle: Holds it.
        trainable: Whether its network can be trained: that is transformers', which takes seconds to import. Both say
            the same.

    Raises:
        BundleError: It has none, or its files do not fit the preset.
    """
    tokenizer = CaptionTokenizer(bundle.file("captioner", "tokenizer.json"))
    state = _read(bundle.file("captioner", MODEL))
    words, positions = _rows(state, "word"), _rows(state, "position")
    if words is not None and words < tokenizer.vocab_size:
        raise BundleError(
            f"The captioner in {bundle.folder} knows {words} word pieces, its tokenizer {tokenizer.vocab_size}."
        )
    with _WithoutInit():
        blip = (build_blip if trainable else Blip)(
            bundle.preset.captioner,
            words or tokenizer.vocab_size,
            positions=positions or bundle.preset.captioner.max_tokens,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        )
    load_strictly(blip, state, may_miss=_TIED)
    blip.tie_weights()
    return BlipCaptioner(bundle.preset.captioner, blip, tokenizer)


def _rows(state: dict[str, Tensor], what: str) -> int | None:
    """Rows of BLIP's word or position embeddings, of which public weights have more than are used; None: missing."""
    table = state.get(f"text_decoder.bert.embeddings.{what}_embeddings.weight")
    return None if table is None else len(table)


def build_embedder(bundle: Bundle, voting: torch.dtype = torch.float32) -> ClipEmbedder:
    """The embedder of a bundle, its LoRA updates merged; without any, captions are read as CLIP reads them.

    Args:
        bundle: Holds it.
        voting: See :class:`~vlmir.vlm.embedder.ClipEmbedder`.

    Raises:
        BundleError: Its files do not fit the preset.
    """
    preset = bundle.preset
    state, lora = _embedder_tensors(bundle)
    with _WithoutInit():
        clip = Clip(preset.embedder.clip)
        _load_frozen(clip, state)
        network = DegradationCLIP(preset.embedder, len(preset.labels), clip, lora=False)
    load_strictly(network, state, may_miss=r"^caption_encoder\.")
    merge_lora(network, lora)
    return ClipEmbedder(network, build_tokenizer(bundle), preset.labels, voting=voting)


def build_tokenizer(bundle: Bundle) -> Tokenizer:
    """The words of the embedder's text tower.

    Raises:
        BundleError: They are the captioner's, and there is none, or they are damaged.
    """
    if bundle.preset.embedder.tokenizer == "open_clip":
        return ClipTokenizer()
    return CaptionTokenizer(bundle.file("captioner", "tokenizer.json"))


def fill_embedder(network: DegradationCLIP, bundle: Bundle) -> None:
    """Load a bundle's embedder into a network whose LoRA updates can be trained further.

    Where the bundle has no LoRA updates, those of the network stay as they are.

    Raises:
        BundleError: Its tensors do not fit the network.
    """
    state, lora = _embedder_tensors(bundle)
    load_strictly(network, state, may_miss=r"^caption_encoder\.")
    if lora:
        load_lora(network, lora)


def has_lora(bundle: Bundle) -> bool:
    """Whether a bundle's embedder reads captions of damaged pictures in its own way, by LoRA updates."""
    with safe_open(bundle.file("embedder", MODEL), framework="pt") as file:
        return any(name.startswith("lora.") for name in file.keys())  # noqa: SIM118 - no mapping


def _embedder_tensors(bundle: Bundle) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The embedder's tensors, and apart from them its LoRA updates."""
    state = _read(bundle.file("embedder", MODEL))
    lora = {n.removeprefix("lora."): state.pop(n) for n in list(state) if n.startswith("lora.")}
    return state, lora


def build_frozen_clip(bundle: Bundle) -> Any:
    """The frozen CLIP of a bundle alone, from which another controller can be trained.

    Raises:
        BundleError: Its tensors do not fit the preset.
    """
    clip = build_clip(bundle.preset.embedder.clip)
    _load_frozen(clip, _read(bundle.file("embedder", MODEL)))
    return clip


def _load_frozen(clip: nn.Module, state: dict[str, Tensor]) -> None:
    """Load CLIP of an embedder's tensors."""
    own = {n.removeprefix("clip."): t for n, t in state.items() if n.startswith("clip.")}
    load_strictly(clip, own)


def build_unet(bundle: Bundle, compute: Compute = REFERENCE) -> UNet:
    """The restoring network of a bundle for every kind of damage, in evaluation mode.

    Args:
        bundle: Holds it.
        compute: Where it is to run, and in which precision; to be saved or trained it stays as it is.

    Raises:
        BundleError: Its file does not fit the preset.
    """
    own, _ = split_adapters(_read(bundle.file("sampler", MODEL)))
    return _unet_of(bundle, own, compute)


def build_sampler(bundle: Bundle, compute: Compute = REFERENCE) -> DiffusionSampler:
    """The sampler of a bundle: its network, and one for each kind of damage that it has an adapter for.

    Args:
        bundle: Holds it.
        compute: Where it is to run, and in which precision.

    Raises:
        BundleError: Its file does not fit the preset.
    """
    own, adapters = split_adapters(_read(bundle.file("sampler", MODEL)))
    unet = _unet_of(bundle, own, compute)
    networks = [
        Adapted(label, adapter.damage, adapted(unet, own, adapter))
        for label, adapter in adapters.items()
    ]
    return DiffusionSampler(unet, bundle.preset.sampler, networks)


def _unet_of(bundle: Bundle, state: dict[str, Tensor], compute: Compute) -> UNet:
    with _WithoutInit():
        unet = UNet(bundle.preset.sampler.unet)
    load_strictly(unet, state)
    return compute.place(unet.eval())


def count_parameters(bundle: Bundle) -> dict[str, int]:
    """Part → how many numbers its file of weights holds, label embeddings and the like included."""
    counts = dict[str, int]()
    for part in bundle.digests:
        with safe_open(bundle.file(part, MODEL), framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping
        counts[part] = sum(map(math.prod, shapes))
    return counts


def save_bundle(
    folder: Path,
    *,
    preset: Preset,
    release: str,
    blip: nn.Module | None = None,
    tokenizer: CaptionTokenizer | None = None,
    embedder: DegradationCLIP,
    unet: UNet,
    metrics: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a bundle into ``folder``.

    Args:
        folder: Where to; created.
        preset: The architecture of all parts.
        release: Name and version of the weights.
        blip: The captioner's network; None: the bundle has no captioner.
        tokenizer: The captioner's words, which the embedder may share; None with ``blip``.
        embedder: The embedder's network, with its LoRA layers; one without them reads captions, once stored, by the
            frozen text tower alone.
        unet: The restoring network, holding the weights to ship.
        metrics: What was measured.
        dtype: Precision of the stored weights.

    Raises:
        BundleError: ``blip`` came without ``tokenizer``, or the reverse.
    """
    if (blip is None) != (tokenizer is None):
        raise BundleError("A captioner is saved with its tokenizer, or neither.")
    parts = REQUIRED if blip is None else PARTS
    own = {n: t for n, t in embedder.state_dict().items() if not n.startswith("caption_encoder.")}
    own |= {f"lora.{name}": tensor for name, tensor in lora_tensors(embedder).items()}
    if blip is not None and tokenizer is not None:
        _write(folder / "captioner" / MODEL, _untied(blip.state_dict()), dtype)
        (folder / "captioner" / "tokenizer.json").write_text(tokenizer.text, encoding="utf-8")
    _write(folder / "embedder" / MODEL, own, dtype)
    _write(folder / "sampler" / MODEL, unet.state_dict(), dtype)
    data = {
        "format": FORMAT,
        "release": release,
        "preset": preset.to_dict(),
        "digests": {part: digest_of(folder, part) for part in parts},
        "metrics": metrics,
    }
    text = json.dumps(data, indent=2) + "\n"
    (folder / "bundle.json").write_text(text, encoding="utf-8")


def save_adapters(folder: Path, adapters: Mapping[str, Adapter], *, release: str) -> None:
    """Add adapters to the sampler of a bundle; others that it has stay. What was measured of it no longer holds.

    Args:
        folder: The bundle's folder.
        adapters: Label → adapter, in place of one that it may have.
        release: Name and version of the new weights.

    Raises:
        BundleError: The bundle is damaged, or an adapter does not fit its network.
    """
    bundle = load_bundle(folder)
    path = bundle.file("sampler", MODEL)
    own, old = split_adapters(_read(path))
    unet = _unet_of(bundle, own, REFERENCE)
    for adapter in adapters.values():
        adapted(unet, own, adapter)
    _write(path, own | join_adapters({**old, **adapters}), torch.float16)
    data = json.loads((folder / "bundle.json").read_text("utf-8"))
    data |= {"release": release, "metrics": {}}
    data["digests"]["sampler"] = digest_of(folder, "sampler")
    text = json.dumps(data, indent=2) + "\n"
    (folder / "bundle.json").write_text(text, encoding="utf-8")


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not re.search(_TIED, name)}


def _write(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in state.items()
    }
    save_file(packed, path)
    path.chmod(0o644)  # safetensors makes it private; a server may run as another user


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, floating-point ones as float32."""
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise BundleError(f"{path} is no safetensors file: {error}.") from error
    return {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


class _WithoutInit(TorchFunctionMode):
    """Skips random initialisation of weights that are loaded a moment later, in this thread alone.

    transformers' ``no_init_weights`` replaces ``torch.nn.init`` for the whole process: two threads that load at once
    put each other's replacements back, and every network built later is left uninitialised.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        # Truncated draws are made anew until they are in range: 0 always is.
        if func in _RANDOM:
            return args[0].zero_()
        return func(*args, **kwargs)


_RANDOM = (Tensor.normal_, Tensor.uniform_)
