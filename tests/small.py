"""A very small architecture with random weights: the whole code, in a second."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase

import torch

from vlmir.config import Preset, from_dict
from vlmir.degradations import LABELS
from vlmir.nn import UNet
from vlmir.parts import save_bundle
from vlmir.vlm.captioner import build_blip
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.tokenizer import SPECIAL_TOKENS, CaptionTokenizer

__all__ = ["CAPTIONS", "small_bundle", "small_preset"]

CAPTIONS = ["a dog runs on the grass .", "two people in the snow .", "a child in a red shirt ."]


def small_preset() -> Preset:
    """All parts, as small as they can be."""
    return from_dict(
        Preset,
        {
            "name": "small",
            "labels": list(LABELS),
            "captioner": {
                "image_size": 32,
                "patch_size": 16,
                "vision_width": 32,
                "vision_layers": 1,
                "text_width": 32,
                "text_layers": 1,
                "heads": 2,
                "max_tokens": 6,
                "beams": 1,
            },
            "embedder": {
                "clip": {
                    "embed_dim": 32,
                    "vision_cfg": {
                        "image_size": 64,
                        "patch_size": 16,
                        "width": 32,
                        "layers": 2,
                        "head_width": 16,
                    },
                    "text_cfg": {
                        "context_length": 12,
                        "vocab_size": 200,
                        "width": 32,
                        "heads": 2,
                        "layers": 1,
                        "pool_type": "eos",
                        "eos_id": 3,
                    },
                },
                "lora": {"rank": 2, "alpha": 4.0, "target_modules": ["c_fc", "c_proj"]},
                "resize": "squash",
                "detail": True,
                "window": 0.65,
                "orthogonal_labels": True,
            },
            "sampler": {
                "unet": {
                    "width": 32,
                    "multipliers": [1, 2],
                    "attention": ["none", "transformer"],
                    "context_dim": 32,
                    "semantic": True,
                    "self_attention": False,
                    "stem_stride": 2,
                    "stem_kernel": 3,
                },
                "schedule": {},
                "prediction": "x0",
                "solver": "dpmpp_2m_sde",
                "steps": 1,
                "tile": 160,
                "overlap": 96,
                "wide": ["hazy"],
            },
        },
    )


def small_bundle(folder: Path) -> Path:
    """Write a bundle of the small preset with random weights; returns its folder."""
    torch.manual_seed(0)
    preset = small_preset()
    tokenizer = _tokenizer(folder / "words" / "tokenizer.json")
    embedder = DegradationCLIP(preset.embedder, len(preset.labels))
    embedder.set_labels(tokenizer(preset.labels, 12))
    unet = UNet(preset.sampler.unet)
    torch.nn.init.normal_(unet.head.weight, std=0.02)
    for name, p in unet.named_parameters():
        if name.endswith("proj_out.weight"):  # they start as zero: conditions would change nothing
            torch.nn.init.normal_(p, std=0.1)
    save_bundle(
        folder / "bundle",
        preset=preset,
        release="small-1",
        blip=build_blip(preset.captioner, tokenizer.vocab_size),
        tokenizer=tokenizer,
        embedder=embedder,
        unet=unet,
        metrics={},
    )
    return folder / "bundle"


def _tokenizer(file: Path) -> CaptionTokenizer:
    """The words of the captions, and letters for others: a trained vocabulary is another one in every process."""
    CaptionTokenizer.train(CAPTIONS, 200, file)
    words = sorted({word for caption in CAPTIONS for word in caption.split()} - {"a", "."})
    pieces = [*SPECIAL_TOKENS, "-", ".", *ascii_lowercase]
    pieces += [*(f"##{letter}" for letter in ascii_lowercase), *words]
    trained = json.loads(file.read_text("utf-8"))
    trained["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    file.write_text(json.dumps(trained), encoding="utf-8")
    return CaptionTokenizer(file)
