"""Each model's ``config.pbtxt`` says of inputs and outputs what its ONNX file says, and the embedder asks for these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_INT64, ModelConfig

from services.embedder.backends import GRAPHS
from tests.integration.calls import exported
from training.onnx_export import OnnxGraph
from training.release.triton_repository import BACKENDS, Backend, write_entry

KINDS = {onnx.TensorProto.FLOAT: TYPE_FP32, onnx.TensorProto.INT64: TYPE_INT64}
FILES = {"onnxruntime": {"model.onnx"}, "python": {"model.onnx", "model.py"}}


@pytest.fixture(scope="module")
def graphs(small_bundle_folder: Path) -> tuple[OnnxGraph, ...]:
    return exported(small_bundle_folder)


def tensors(values: Iterable[Any]) -> list[tuple[str, int, list[int]]]:
    """Name, kind and sizes of a graph's inputs or outputs, without the batch."""
    found = []
    for value in values:
        kind = value.type.tensor_type
        batch, *sizes = kind.shape.dim
        assert batch.dim_param and not batch.dim_value, f"{value.name}: the batch is fixed"
        found.append((value.name, KINDS[kind.elem_type], [size.dim_value for size in sizes]))
    return found


def disagreements(config: ModelConfig, data: bytes) -> list[str]:
    """Where a configuration says something else than the graph."""
    graph = onnx.load_model_from_string(data).graph
    faults = []
    for what, said, true in (
        ("inputs", config.input, graph.input),
        ("outputs", config.output, graph.output),
    ):
        told = [(one.name, one.data_type, list(one.dims)) for one in said]
        if told != tensors(true):
            faults.append(f"{what} are {told}, in the graph {tensors(true)}")
    if config.max_batch_size < 1:
        faults.append("it takes no batches")
    return faults


def entry(folder: Path, graph: OnnxGraph, backend: Backend) -> ModelConfig:
    """What the command writes, as Triton reads it."""
    write_entry(folder, graph.name, graph.data, backend=backend)
    text = (folder / graph.name / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, ModelConfig())


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_model_is_as_its_configuration_says(
    graphs: tuple[OnnxGraph, ...], backend: Backend, tmp_path: Path
) -> None:
    for graph in graphs:
        config = entry(tmp_path, graph, backend)
        assert disagreements(config, graph.data) == []
        assert (config.name, config.backend) == (graph.name, backend)
        files = {file.name for file in (tmp_path / graph.name / "1").iterdir()}
        assert files == FILES[backend]


def test_the_embedder_asks_for_these_models(graphs: tuple[OnnxGraph, ...]) -> None:
    assert {graph.name for graph in graphs} == set(GRAPHS)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda config: config.input[0].dims.append(1), "inputs are"),
        (lambda config: setattr(config.input[0], "name", "view"), "inputs are"),
        (lambda config: setattr(config.input[0], "data_type", TYPE_INT64), "inputs are"),
        (lambda config: config.output.pop(), "outputs are"),
        (lambda config: setattr(config.output[0], "name", "f"), "outputs are"),
        (lambda config: setattr(config, "max_batch_size", 0), "takes no batches"),
    ],
)
def test_another_configuration_is_noticed(
    graphs: tuple[OnnxGraph, ...],
    spoil: Callable[[ModelConfig], object],
    fault: str,
    tmp_path: Path,
) -> None:
    graph = graphs[0]
    config = entry(tmp_path, graph, "onnxruntime")
    spoil(config)
    (found,) = disagreements(config, graph.data)
    assert fault in found


def test_a_misspelt_field_cannot_be_read(graphs: tuple[OnnxGraph, ...], tmp_path: Path) -> None:
    entry(tmp_path, graphs[0], "python")
    text = (tmp_path / graphs[0].name / "config.pbtxt").read_text("utf-8")
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text.replace("max_batch_size", "max_batchsize"), ModelConfig())
