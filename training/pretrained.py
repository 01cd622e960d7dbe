"""The networks a stage builds on: CLIP, BLIP and their words, and the embedder of stage 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from training.engine.checkpoints import Checkpoints
from vlmir.bundle import Bundle, load_bundle
from vlmir.config import Preset
from vlmir.errors import OptionError
from vlmir.parts import (
    build_captioner,
    build_frozen_clip,
    build_tokenizer,
    fill_embedder,
    has_lora,
)
from vlmir.vlm.captioner import BlipCaptioner, build_blip
from vlmir.vlm.clip import DegradationCLIP, build_clip
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.hub import public_captioner, public_clip
from vlmir.vlm.tokenizer import CaptionTokenizer, ClipTokenizer, Tokenizer

__all__ = ["PRETRAIN", "Pretrained", "load_embedder", "load_pretrained", "new_embedder"]

PRETRAIN = Path("runs/pretrain")
"""Where training.pretrain leaves its networks unless told otherwise."""


class Pretrained(NamedTuple):
    """The parts that stage 1 starts from."""

    clip: Any
    captioner: BlipCaptioner | None
    """None where they come from a bundle without one, such as DA-CLIP's."""
    tokenizer: Tokenizer
    """CLIP's."""
    words: CaptionTokenizer | None
    """The captioner's, which CLIP may share; None without a captioner."""
    folder: Path | None
    """Where they were read from; None for public weights."""

    def need_captioner(self) -> BlipCaptioner:
        """The captioner.

        Raises:
            OptionError: There is none.
        """
        if self.captioner is None:
            raise OptionError(f"{self.folder} has no captioner, but captions are needed here.")
        return self.captioner


def load_pretrained(preset: Preset, folder: Path | None) -> Pretrained:
    """CLIP, BLIP and tokenizers: of :mod:`training.pretrain`'s folder, of a bundle's, or the public ones.

    Args:
        preset: The architecture.
        folder: None takes the public weights that the preset names, or else ``runs/pretrain``.

    Raises:
        FileNotFoundError: The folder is neither.
        UnavailableError: The public weights are neither on the hub nor in its cache.
    """
    if folder is None and preset.captioner.hub:
        clip = public_clip(preset.embedder)
        captioner, words = public_captioner(preset.captioner)
        return Pretrained(clip.eval(), captioner, ClipTokenizer(), words, None)
    folder = folder or PRETRAIN
    if (folder / "bundle.json").is_file():
        return _of_bundle(preset, load_bundle(folder))
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run training.pretrain first.")
    tokenizer = CaptionTokenizer(file)
    clip, blip = (
        build_clip(preset.embedder.clip),
        build_blip(preset.captioner, tokenizer.vocab_size),
    )
    for name, model in (("clip", clip), ("blip", blip)):
        state = Checkpoints(folder / name).require("training.pretrain")
        model.load_state_dict(state["model"])
    captioner = BlipCaptioner(preset.captioner, blip, tokenizer)
    return Pretrained(clip.eval(), captioner, tokenizer, tokenizer, folder)


def _of_bundle(preset: Preset, bundle: Bundle) -> Pretrained:
    clip, tokenizer = build_frozen_clip(bundle).eval(), build_tokenizer(bundle)
    if "captioner" not in bundle.digests:
        return Pretrained(clip, None, tokenizer, None, bundle.folder)
    words = CaptionTokenizer(bundle.file("captioner", "tokenizer.json"))
    captioner = BlipCaptioner(
        preset.captioner, build_captioner(bundle, trainable=True).model, words
    )
    return Pretrained(clip, captioner, tokenizer, words, bundle.folder)


def new_embedder(
    preset: Preset, parts: Pretrained, init: Bundle | None, *, lora: bool = True
) -> DegradationCLIP:
    """The network of stage 1: around the pretrained CLIP, or that of the bundle ``init``.

    Args:
        preset: The architecture.
        parts: What it builds on.
        init: The bundle; without LoRA updates in it, those of the network start as the identity.
        lora: Whether it has LoRA updates at all.

    Raises:
        BundleError: The bundle's weights do not fit the preset.
    """
    network = DegradationCLIP(preset.embedder, len(preset.labels), parts.clip, lora=lora)
    length = preset.embedder.clip.text_cfg.context_length
    network.set_labels(parts.tokenizer(preset.labels, length))
    if init is not None:
        fill_embedder(network, init)
    return network


def load_embedder(
    preset: Preset, pretrained: Path | None, stage1: Path
) -> tuple[Pretrained, ClipEmbedder]:
    """What stage 1 made, with what it built on; ``stage1`` may be a bundle, too.

    Raises:
        FileNotFoundError: Stage 1 has not run.
        BundleError: The bundle's weights do not fit the preset.
    """
    if (stage1 / "bundle.json").is_file():
        bundle = load_bundle(stage1)
        parts = _of_bundle(preset, bundle)
        network = new_embedder(preset, parts, bundle, lora=has_lora(bundle))
    else:
        parts = load_pretrained(preset, pretrained)
        network = new_embedder(preset, parts, None)
        state = Checkpoints(stage1 / "embedder").require("training.stage1")
        network.load_state_dict(state["model"])
    return parts, ClipEmbedder(network, parts.tokenizer, preset.labels)
