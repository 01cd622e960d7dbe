"""The embedder as ONNX, for Triton or ONNX Runtime alone: ``python -m training.onnx_export BUNDLE OUT``.

Two graphs, each for any batch B, with its weights inside:

* ``clip_image``: ``views`` (B×(3|6)×S×S, float32, as :func:`vlmir.vlm.preprocess.clip_input` makes them) → ``f_I``
  (B×D), ``f_D`` (B×D), ``logits`` (B×K) and ``degradations`` (B×K, probabilities: each row sums to 1);
* ``clip_text``: ``ids`` (B×L, int64) → ``f_T`` (B×D), by the caption encoder with its LoRA updates merged.

``degradations`` are those of each view alone. A picture is judged by several views: the softmax of the mean of their
``logits``. Views are float32 and normalised, since the library rounds them to bytes nowhere: that would move ``f_D`` by
1 % through the square roots of small differences in the detail view.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from training.release.triton_repository import BACKENDS, Backend, write_entry
from vlmir import __version__
from vlmir.bundle import Bundle, load_bundle
from vlmir.degradations import degrade
from vlmir.errors import VlmirError
from vlmir.image.color import to_float
from vlmir.parts import build_embedder
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.embedder import ClipEmbedder

__all__ = ["TOLERANCE", "OnnxGraph", "export_onnx", "greatest_differences", "main", "write_onnx"]

TOLERANCE = 1e-4
"""Greatest difference to torch that is let through, as a share of the greatest value of the output."""

OPSET = 20
"""The first with GELU as one operator; ONNX Runtime reads it from 1.18 on."""

CAPTIONS = ("a dog runs on the grass .", "", "two people in the snow with a red sled " * 20)
"""An ordinary caption, none, and one that is cut, to check the text graph with."""


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """One exported graph, checked against torch."""

    name: str
    """``clip_image`` or ``clip_text``."""
    data: bytes = field(repr=False)
    """The ONNX file. Its metadata name the release, the embedder's digest, the labels (JSON) and the image size."""
    differences: Mapping[str, float]
    """Output → greatest difference to torch, as a share of the output's greatest value."""


class _Graph(nn.Module):
    """What one file computes, of one input."""

    outputs: tuple[str, ...]

    def __init__(self, network: DegradationCLIP) -> None:
        super().__init__()
        self.network = network
        self.eval()


class _ImageGraph(_Graph):
    """``clip_image``."""

    outputs = ("f_I", "f_D", "logits", "degradations")

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        f_I, f_D = self.network.encode_image(views)
        logits = self.network.degradation_logits(f_D)
        return f_I, f_D, logits, logits.softmax(dim=-1)


class _TextGraph(_Graph):
    """``clip_text``."""

    outputs = ("f_T",)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (self.network.encode_caption(ids),)


def export_onnx(bundle: Bundle) -> tuple[OnnxGraph, OnnxGraph]:
    """The embedder of a bundle as ``clip_image`` and ``clip_text``; the same bundle gives the same bytes.

    Both are run by ONNX Runtime beside torch, one input at a time and three at once, on random inputs and on damaged
    photos and captions.

    Args:
        bundle: The opened bundle. An embedder of more than 2 GB does not fit one ONNX file.

    Returns:
        Both graphs with the differences that were measured.

    Raises:
        BundleError: The embedder's files do not fit the preset.
        ValueError: An output differs from torch by more than ``TOLERANCE``.
    """
    embedder = build_embedder(bundle)
    config, notes = bundle.preset.embedder.clip, _notes(bundle)
    random = torch.Generator().manual_seed(0)
    photos, captions = _photo_views(embedder), embedder.tokenize(CAPTIONS)
    noise = torch.randn(photos.shape, generator=random)
    ids = torch.randint(config.text_cfg.vocab_size, captions.shape, generator=random)
    return (
        _checked("clip_image", "views", _ImageGraph(embedder.network), [photos, noise], notes),
        _checked("clip_text", "ids", _TextGraph(embedder.network), [captions, ids], notes),
    )


def write_onnx(
    bundle: Bundle, out: Path, *, version: int = 1, backend: Backend = "onnxruntime"
) -> tuple[OnnxGraph, OnnxGraph]:
    """Write ``clip_image.onnx`` and ``clip_text.onnx`` into ``out``, which becomes a Triton model repository with both.

    Nothing is written before both graphs are checked.

    Args:
        bundle: The opened bundle.
        out: Where to; made where it is missing.
        version: Of both entries, from 1 on.
        backend: What runs them in Triton.

    Returns:
        What was written, with the differences from torch that were measured.

    Raises:
        BundleError: The embedder's files do not fit the preset.
        ValueError: A graph differs from torch by more than ``TOLERANCE``, or the version is below 1.
        FileExistsError: The repository has another model as this version.
    """
    graphs = export_onnx(bundle)
    for graph in graphs:
        write_entry(out, graph.name, graph.data, version=version, backend=backend)
        (out / f"{graph.name}.onnx").write_bytes(graph.data)
    return graphs


def greatest_differences(
    data: bytes, module: nn.Module, batches: Sequence[Tensor]
) -> dict[str, float]:
    """Run a graph and the module it was made from on the same batches.

    Args:
        data: The ONNX file; it has one input.
        module: Maps a batch to the graph's outputs, in their order.
        batches: Inputs with the batch as their first dimension.

    Returns:
        Output → greatest difference of any number in it, as a share of the output's greatest absolute value; NaN where
        either has NaN.
    """
    options = onnxruntime.SessionOptions()
    # A caller who limits torch's threads means these, too.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    worst = dict.fromkeys(names, 0.0)
    for batch in batches:
        with torch.inference_mode():
            wanted = module(batch)
        got = session.run(names, {source.name: batch.numpy()})
        for name, ours, torchs in zip(names, got, wanted, strict=True):
            scale = max(float(torchs.abs().max()), torch.finfo().tiny)
            difference = np.abs(ours - torchs.numpy()).max() / scale
            worst[name] = float(np.maximum(worst[name], difference))  # keeps NaN, as max would not
    return worst


def _checked(
    name: str,
    source: str,
    module: _Graph,
    threes: Sequence[Tensor],
    notes: dict[str, str],
) -> OnnxGraph:
    """Export a module with the input ``source``, and check it on batches of three and of one."""
    model = _convert(module, source, threes[0])
    onnx.helper.set_model_props(model, notes)
    model.producer_name, model.producer_version = "vlmir", __version__
    data = model.SerializeToString(deterministic=True)
    batches = [*threes, *(three[:1] for three in threes)]
    differences = greatest_differences(data, module, batches)
    wrong = [f"{out} by {d:.1e}" for out, d in differences.items() if not d <= TOLERANCE]
    if wrong:
        raise ValueError(
            f"{name}.onnx differs from torch by more than {TOLERANCE:g} of an output's greatest value: "
            f"{', '.join(wrong)}."
        )
    return OnnxGraph(name=name, data=data, differences=differences)


def _convert(module: _Graph, source: str, example: Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        (example,),
        input_names=[source],
        output_names=list(module.outputs),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    return _without_notes(cast(torch.onnx.ONNXProgram, program).model_proto)


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes on every node: they hold paths of this machine."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (graph, *graph.node, *values):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return model


def _notes(bundle: Bundle) -> dict[str, str]:
    """What a service compares with the bundle it serves."""
    return {
        "release": bundle.release,
        "embedder": bundle.digests["embedder"],
        "labels": json.dumps(bundle.preset.labels),
        "image_size": str(bundle.preset.embedder.clip.vision_cfg.image_size),
    }


def _photo_views(embedder: ClipEmbedder) -> Tensor:
    """Three sample photos, each damaged in its own way: 3×(3|6)×S×S."""
    from skimage import data

    photos = {"noisy": data.astronaut, "rainy": data.coffee, "jpeg-compressed": data.chelsea}
    levels = {label: photo() for label, photo in photos.items()}  # type: ignore[no-untyped-call]
    damaged = (degrade(to_float(p), label, seed=0, strength=0.7) for label, p in levels.items())
    return torch.cat([embedder.view(picture) for picture in damaged])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Write the embedder's ONNX files and their entries of a Triton model repository."
    )
    parser.add_argument("bundle", nargs="?", default="tiny", help="name or folder (default: tiny)")
    parser.add_argument("out", type=Path, help="folder of the files, and the model repository")
    parser.add_argument("--version", type=int, default=1, help="of the entries (default: 1)")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="onnxruntime",
        help="of Triton; python is for a Triton without the onnxruntime backend",
    )
    arguments = parser.parse_args()
    try:
        bundle = load_bundle(arguments.bundle)
        written = write_onnx(
            bundle, arguments.out, version=arguments.version, backend=arguments.backend
        )
    except (VlmirError, OSError, ValueError) as error:
        print(f"training.onnx_export: {error}", file=sys.stderr)
        sys.exit(2)
    for graph in written:
        measured = ", ".join(f"{name} {d:.1e}" for name, d in graph.differences.items())
        print(f"{graph.name}.onnx: {len(graph.data) / 1e6:.1f} MB; from torch {measured}")


if __name__ == "__main__":
    main()
