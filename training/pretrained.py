"""The networks a stage builds on: CLIP, BLIP and their words, and the embedder of stage 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from training.checkpoints import Checkpoints
from vlmir.bundle import load_bundle
from vlmir.config import Preset
from vlmir.parts import build_captioner, build_frozen_clip, fill_embedder
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
    captioner: BlipCaptioner
    tokenizer: Tokenizer
    """CLIP's."""
    words: Path | None
    """The file of tiny's tokenizer, which both share; None for public weights."""


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
        return Pretrained(clip.eval(), public_captioner(preset.captioner), ClipTokenizer(), None)
    folder = folder or PRETRAIN
    if (folder / "bundle.json").is_file():
        bundle = load_bundle(folder)
        file = bundle.file("captioner", "tokenizer.json")
        tokenizer = CaptionTokenizer(file)
        captioner = BlipCaptioner(preset.captioner, build_captioner(bundle).model, tokenizer)
        return Pretrained(build_frozen_clip(bundle).eval(), captioner, tokenizer, file)
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
    return Pretrained(clip.eval(), captioner, tokenizer, file)


def new_embedder(preset: Preset, parts: Pretrained, init: Path | None) -> DegradationCLIP:
    """The network of stage 1: around the pretrained CLIP, or that of the bundle ``init``."""
    network = DegradationCLIP(preset.embedder, len(preset.labels), parts.clip)
    length = preset.embedder.clip.text_cfg.context_length
    network.set_labels(parts.tokenizer(preset.labels, length))
    if init is not None:
        fill_embedder(network, load_bundle(init))
    return network


def load_embedder(
    preset: Preset, pretrained: Path | None, stage1: Path
) -> tuple[Pretrained, ClipEmbedder]:
    """What stage 1 made, with what it built on; ``stage1`` may be a bundle, too.

    Raises:
        FileNotFoundError: Stage 1 has not run.
    """
    if (stage1 / "bundle.json").is_file():
        parts = load_pretrained(preset, stage1)
        network = new_embedder(preset, parts, stage1)
    else:
        parts = load_pretrained(preset, pretrained)
        network = new_embedder(preset, parts, None)
        state = Checkpoints(stage1 / "embedder").require("training.stage1")
        network.load_state_dict(state["model"])
    return parts, ClipEmbedder(network, parts.tokenizer, preset.labels)
