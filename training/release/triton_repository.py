"""Entries of a Triton model repository: ``<model>/config.pbtxt`` and ``<model>/<version>/model.onnx``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import onnx

__all__ = ["BACKENDS", "MAX_BATCH", "Backend", "write_entry"]

Backend = Literal["onnxruntime", "python"]
"""Triton's own ONNX Runtime; or, where it lacks that, its Python backend running our ``triton_model.py``."""

BACKENDS: tuple[Backend, ...] = ("onnxruntime", "python")

MAX_BATCH = 32
"""Inputs in one execution: the ten views of each of three pictures fit."""

_TYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
}

_CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [
{inputs}
]
output [
{outputs}
]
# A version is served beside newer ones until its folder goes: running requests end on what they began with.
version_policy {{ all {{ }} }}
# What waits while the model is busy travels together. A delay would be paid in full by a lone request.
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
# What the version written last was made from; a client compares it with its bundle.
parameters [
{parameters}
]
"""


def write_entry(
    repository: Path,
    name: str,
    data: bytes,
    *,
    version: int = 1,
    backend: Backend = "onnxruntime",
) -> None:
    """Add a version of a model to a repository, and say so in the model's ``config.pbtxt``.

    The version's folder appears complete, so that a polling server never sees half of it.

    Args:
        repository: The repository's folder; made where it is missing.
        name: The model's name.
        data: Its ONNX file, whose tensors have the batch as their first dimension. Its metadata become parameters of
            the configuration, beside ``version``.
        version: A number from 1 on. Each version of a model takes and gives the same tensors.
        backend: What runs it; the same for each version of a model.

    Raises:
        ValueError: The version is below 1.
        FileExistsError: The version exists and is another: what may be running is never changed.
    """
    if version < 1:
        raise ValueError(f"Triton's versions begin with 1, not {version}.")
    files = {"model.onnx": data}
    if backend == "python":
        files["model.py"] = Path(__file__).with_name("triton_model.py").read_bytes()
    folder = repository / name / str(version)
    if folder.exists() and {path.name: path.read_bytes() for path in folder.iterdir()} != files:
        raise FileExistsError(f"{folder} holds other files; name a new version or remove it.")
    staged = folder.with_name(f".{version}")
    shutil.rmtree(staged, ignore_errors=True)  # what a killed run left
    staged.mkdir(parents=True)
    for file, content in files.items():
        (staged / file).write_bytes(content)
    text = _config(name, onnx.load_model_from_string(data), version, backend)
    (repository / name / "config.pbtxt").write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(staged)
    else:
        staged.rename(folder)


def _config(name: str, model: onnx.ModelProto, version: int, backend: Backend) -> str:
    notes = {"version": str(version)} | {note.key: note.value for note in model.metadata_props}
    return _CONFIG.format(
        name=name,
        backend=backend,
        max_batch=MAX_BATCH,
        inputs=_tensors(model.graph.input),
        outputs=_tensors(model.graph.output),
        parameters=_parameters(notes),
    )


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> str:
    """One line for each input or output; Triton counts the batch apart."""
    lines = []
    for value in values:
        tensor = value.type.tensor_type
        kind, dims = _TYPES[tensor.elem_type], [dim.dim_value for dim in tensor.shape.dim[1:]]
        lines.append(f'  {{ name: "{value.name}" data_type: {kind} dims: {dims} }}')
    return ",\n".join(lines)


def _parameters(notes: Mapping[str, str]) -> str:
    return ",\n".join(
        f'  {{ key: "{key}" value {{ string_value: {json.dumps(text, ensure_ascii=False)} }} }}'
        for key, text in notes.items()
    )
