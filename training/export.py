"""Join what the stages made into a bundle: ``python -m training.export --release tiny-1 OUT``.

It has no adapters: those of an earlier bundle are changes of that bundle's weights (:mod:`training.adapt`).
Measure it (:mod:`training.evaluate`), put the numbers into it (:mod:`training.table`), then register and promote it
(:mod:`training.register`, :mod:`training.promote`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from training.config import CONFIGS, load_config
from training.engine.checkpoints import Checkpoints
from training.pretrained import load_embedder
from vlmir.bundle import load_bundle
from vlmir.config import Preset, load_preset
from vlmir.errors import VlmirError
from vlmir.nn import UNet
from vlmir.parts import save_bundle

__all__ = ["export", "main"]


def export(
    out: Path,
    *,
    preset: Preset,
    pretrained: Path | None,
    stage1: Path,
    stage2: Path,
    release: str,
) -> None:
    """Write the bundle ``out`` from the checkpoints of pretraining and both stages.

    The label prototypes are those that stage 2 trained with. Numbers come later, by :mod:`training.table`.

    Args:
        out: The bundle's folder.
        preset: The architecture that was trained.
        pretrained: CLIP and BLIP, as for the stages.
        stage1: Stage 1's folder, or a bundle whose embedder was kept; one without a captioner gives another such.
        stage2: Stage 2's folder.
        release: Name and version of the weights.

    Raises:
        BundleError: A bundle's weights do not fit the preset.
        FileNotFoundError: A checkpoint is missing.
        ValueError: Stage 2 has seen no conditions yet.
    """
    parts, embedder = load_embedder(preset, pretrained, stage1)
    sampler = Checkpoints(stage2 / "sampler").require("training.stage2")
    if not sampler["prototypes"].any():
        raise ValueError(f"{stage2} was trained blind; go on with training.stage2 without --blind.")
    embedder.network.prototypes.copy_(sampler["prototypes"])
    unet = UNet(preset.sampler.unet)
    unet.load_state_dict(sampler["ema"])
    save_bundle(
        out,
        preset=preset,
        release=release,
        blip=None if parts.captioner is None else parts.captioner.model,
        tokenizer=parts.words,
        embedder=embedder.network,
        unet=unet,
        metrics={},
    )


def write_onnx_of(bundle: Path, folder: Path) -> None:
    """The embedder of a bundle as ONNX files and entries of a model repository in ``folder``.

    Raises:
        FileExistsError: The repository has another model as its first version.
        ValueError: A graph differs from torch.
    """
    from training.onnx_export import write_onnx  # brings onnx, which nothing else here needs

    for graph in write_onnx(load_bundle(bundle), folder):
        print(f"{folder / graph.name}.onnx: {len(graph.data) / 1e6:.1f} MB, checked against torch")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description="Join what the stages made into a bundle."
    )
    parser.add_argument("out", type=Path, help="folder of the new bundle")
    parser.add_argument("--preset", choices=CONFIGS, default="tiny")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the config it was trained by")
    parser.add_argument("--pretrained", type=Path, help="as for the stages")
    parser.add_argument("--stage1", type=Path, default=Path("runs/stage1"))
    parser.add_argument("--stage2", type=Path, default=Path("runs/stage2"))
    parser.add_argument("--release", required=True, help="name and version of these weights")
    parser.add_argument(
        "--onnx",
        type=Path,
        metavar="FOLDER",
        help="write the embedder there as ONNX, too, with entries of a Triton model repository",
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    preset = load_preset(load_config(arguments.config or arguments.preset).preset)
    try:
        export(
            arguments.out,
            preset=preset,
            pretrained=arguments.pretrained,
            stage1=arguments.stage1,
            stage2=arguments.stage2,
            release=arguments.release,
        )
        if arguments.onnx is not None:
            write_onnx_of(arguments.out, arguments.onnx)
    except (VlmirError, OSError, ValueError) as error:
        print(f"training.export: {error}", file=sys.stderr)
        sys.exit(2)
    print(
        f"{arguments.out}: {arguments.release}; measure it with training.evaluate, then register it"
    )


if __name__ == "__main__":
    main()
