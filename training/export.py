"""Join what the stages made into a bundle: ``python -m training.export --release tiny-1 OUT``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from training.loop import load_checkpoint
from training.views import load_pretrained
from vlmir.config import load_preset
from vlmir.nn import UNet
from vlmir.parts import save_bundle
from vlmir.vlm.clip import DegradationCLIP

__all__ = ["export", "main"]


def export(
    out: Path,
    *,
    pretrained: Path,
    stage1: Path,
    stage2: Path,
    release: str,
) -> None:
    """Write the bundle ``out`` from the checkpoints of pretraining and both stages.

    The label prototypes are those that stage 2 trained with. Numbers come later, by :mod:`training.table`.

    Raises:
        FileNotFoundError: A checkpoint is missing.
        ValueError: Stage 2 has seen no conditions yet.
    """
    preset = load_preset("tiny")
    parts = load_pretrained(preset, pretrained)
    network = DegradationCLIP(preset.embedder, len(preset.labels), parts.clip)
    network.load_state_dict(_checkpoint(stage1 / "embedder.pt")["model"])
    sampler = _checkpoint(stage2 / "sampler.pt")
    if "prototypes" not in sampler or not sampler["prototypes"].any():
        raise ValueError(f"{stage2} was trained blind; go on with training.stage2 without --blind.")
    network.prototypes.copy_(sampler["prototypes"])
    unet = UNet(preset.sampler.unet)
    unet.load_state_dict(sampler["ema"])
    save_bundle(
        out,
        preset=preset,
        release=release,
        blip=parts.captioner.model,
        tokenizer=parts.words,
        embedder=network,
        unet=unet,
        metrics={},
    )


def _checkpoint(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"{path} is missing: run its training first.")
    return state


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path, help="folder of the new bundle")
    parser.add_argument("--pretrained", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--stage1", type=Path, default=Path("runs/stage1"))
    parser.add_argument("--stage2", type=Path, default=Path("runs/stage2"))
    parser.add_argument("--release", required=True, help="name and version of these weights")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    export(
        arguments.out,
        pretrained=arguments.pretrained,
        stage1=arguments.stage1,
        stage2=arguments.stage2,
        release=arguments.release,
    )


if __name__ == "__main__":
    main()
