"""What goes into each part and comes out of it, for MLflow to show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmir.bundle import Bundle
from vlmir.config import Preset

if TYPE_CHECKING:  # it takes a second to import
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.types import TensorSpec

__all__ = ["signature_of", "write_mlmodel"]

FLAVOR = "vlmir"
"""Says to MLflow that none of its own loaders fits: a bundle is opened by :func:`vlmir.bundle.load_bundle`."""


def signature_of(part: str, preset: Preset) -> ModelSignature:
    """Names, types and shapes of a part's inputs and outputs; −1 stands for any size, the batch B foremost.

    * ``captioner``: image (B×3×S×S, float32, 0…1) → caption (B sentences);
    * ``embedder``: views (B×(3|6)×S×S, float32, as :func:`vlmir.vlm.preprocess.clip_input` makes them) and ids (B×L,
      int64) → f_I, f_D, f_T (B×D), logits and degradations (B×K);
    * ``sampler``: x and mu (B×3×H×W, float32, 0…1), t (B) and the conditions f_T, f_I, f_D (B×D) → output (B×3×H×W), by
      the preset an estimate of the picture, of the noise or of v.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    specs = {"captioner": _captioner, "embedder": _embedder, "sampler": _sampler}[part]
    inputs, outputs = specs(preset)
    return ModelSignature(inputs=Schema([*inputs]), outputs=Schema([*outputs]))


def write_mlmodel(folder: Path, part: str, bundle: Bundle, model: LoggedModel) -> Path:
    """Write the file by which MLflow knows a part's signature and where it came from; returns its path."""
    from mlflow.models import Model

    about = {"part": part, "release": bundle.release, "preset": bundle.preset.name}
    file = folder / "MLmodel"
    Model(
        artifact_path=model.name,
        run_id=model.source_run_id,
        model_id=model.model_id,
        signature=signature_of(part, bundle.preset),
        flavors={FLAVOR: about},
    ).save(file)
    return file


_Specs = tuple[list["TensorSpec"], list["TensorSpec"]]


def _captioner(preset: Preset) -> _Specs:
    side = preset.captioner.image_size
    return [_spec("image", 3, side, side)], [_spec("caption", kind="str")]


def _embedder(preset: Preset) -> _Specs:
    clip, labels = preset.embedder.clip, len(preset.labels)
    side, dim = clip.vision_cfg.image_size, clip.embed_dim
    views = _spec("views", 6 if preset.embedder.detail else 3, side, side)
    ids = _spec("ids", clip.text_cfg.context_length, kind="int64")
    probabilities = [_spec(name, labels) for name in ("logits", "degradations")]
    return [views, ids], [*(_spec(name, dim) for name in ("f_I", "f_D", "f_T")), *probabilities]


def _sampler(preset: Preset) -> _Specs:
    dim = preset.sampler.unet.context_dim
    pictures = [_spec(name, 3, -1, -1) for name in ("x", "mu")]
    conditions = [_spec(name, dim) for name in ("f_T", "f_I", "f_D")]
    return [*pictures, _spec("t"), *conditions], [_spec("output", 3, -1, -1)]


def _spec(name: str, *shape: int, kind: str = "float32") -> TensorSpec:
    """A batch of tensors of this shape."""
    from mlflow.types import TensorSpec

    return TensorSpec(np.dtype(kind), (-1, *shape), name)
