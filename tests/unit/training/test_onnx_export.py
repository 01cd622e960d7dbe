"""The embedder's ONNX files compute what torch does, say whose they are, and become entries for Triton."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from safetensors.torch import load_file, save_file
from skimage import data
from tritonclient.grpc.model_config_pb2 import TYPE_INT64, ModelConfig

from tests.small import CAPTIONS, small_bundle, small_preset
from training import export
from training.engine.checkpoints import Checkpoints
from training.onnx_export import OnnxGraph, export_onnx, greatest_differences, main
from training.release.triton_repository import MAX_BATCH, write_entry
from vlmir.bundle import Bundle, digest_of, load_bundle
from vlmir.degradations import degrade
from vlmir.image.color import to_float
from vlmir.nn import UNet
from vlmir.parts import build_embedder, build_frozen_clip, fill_embedder
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.embedder import ClipEmbedder, is_certain, judge, with_mirrors

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bundle(small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As if it were trained: what starts as zero, such as the LoRA updates, no longer is."""
    folder = tmp_path_factory.mktemp("onnx") / "bundle"
    shutil.copytree(small_bundle_folder, folder)
    file = folder / "embedder" / "model.safetensors"
    state = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not name.endswith("running_var"):
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    save_file(state, file)
    about = json.loads((folder / "bundle.json").read_text())
    about["digests"]["embedder"] = digest_of(folder, "embedder")
    (folder / "bundle.json").write_text(json.dumps(about))
    return load_bundle(folder)


@pytest.fixture(scope="module")
def graphs(bundle: Bundle) -> dict[str, OnnxGraph]:
    return {graph.name: graph for graph in export_onnx(bundle)}


@pytest.fixture(scope="module")
def embedder(bundle: Bundle) -> ClipEmbedder:
    return build_embedder(bundle)


def run(graph: OnnxGraph, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_the_export_measures_how_near_it_is(graphs: dict[str, OnnxGraph]) -> None:
    images, texts = graphs["clip_image"].differences, graphs["clip_text"].differences
    assert list(images) == ["f_I", "f_D", "logits", "degradations"] and list(texts) == ["f_T"]
    assert all(0 <= difference <= 1e-5 for difference in [*images.values(), *texts.values()])


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_gives_what_torch_gives(
    graphs: dict[str, OnnxGraph], embedder: ClipEmbedder, batch: int
) -> None:
    views = torch.randn((batch, 6, 64, 64), generator=torch.Generator().manual_seed(1))
    got = run(graphs["clip_image"], views=views.numpy())
    f_I, f_D, logits = embedder.see(views)
    np.testing.assert_allclose(got["f_I"], f_I, atol=1e-5)
    np.testing.assert_allclose(got["f_D"], f_D, atol=1e-5)
    np.testing.assert_allclose(got["degradations"], logits.softmax(-1), atol=1e-5)
    ids = embedder.tokenize((CAPTIONS * 3)[:batch])
    got = run(graphs["clip_text"], ids=ids.numpy())
    np.testing.assert_allclose(got["f_T"], embedder.network.encode_caption(ids).detach(), atol=1e-5)


def test_the_text_graph_holds_the_lora_updates(
    graphs: dict[str, OnnxGraph], bundle: Bundle, embedder: ClipEmbedder
) -> None:
    preset = bundle.preset
    unmerged = DegradationCLIP(
        preset.embedder, len(preset.labels), build_frozen_clip(bundle), lora=True
    )
    fill_embedder(unmerged, bundle)
    ids = embedder.tokenize(CAPTIONS)
    got = run(graphs["clip_text"], ids=ids.numpy())["f_T"]
    with torch.inference_mode():
        np.testing.assert_allclose(got, unmerged.eval().encode_caption(ids), atol=1e-5)
        assert np.abs(got - unmerged.encode_text(ids).numpy()).max() > 1e-2


def test_the_files_say_whose_they_are_and_stand_alone(
    graphs: dict[str, OnnxGraph], bundle: Bundle
) -> None:
    for graph in graphs.values():
        model = onnx.load_model_from_string(graph.data)
        onnx.checker.check_model(model, full_check=True)
        notes = {note.key: note.value for note in model.metadata_props}
        assert notes["release"] == bundle.release
        assert notes["embedder"] == bundle.digests["embedder"]
        assert json.loads(notes["labels"]) == list(bundle.preset.labels)
        assert notes["image_size"] == "64"
        assert model.producer_name == "vlmir" and model.producer_version
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert str(ROOT).encode() not in graph.data and b"stack_trace" not in graph.data


def test_an_architecture_like_da_clips_is_exported_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = small_preset()
    clip = preset.embedder.clip
    text = dataclasses.replace(clip.text_cfg, pool_type="argmax")
    clip = dataclasses.replace(clip, text_cfg=text)
    embedder = dataclasses.replace(preset.embedder, clip=clip, detail=False, resize="crop")
    other = dataclasses.replace(preset, embedder=embedder)
    monkeypatch.setattr("tests.small.small_preset", lambda: other)
    image, _ = export_onnx(load_bundle(small_bundle(tmp_path)))
    (views,) = onnx.load_model_from_string(image.data).graph.input
    assert [d.dim_param or d.dim_value for d in views.type.tensor_type.shape.dim] == [
        "batch",
        3,
        64,
        64,
    ]


def test_a_graph_that_differs_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = torch.onnx.export

    def convert_wrongly(module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        program = convert(module, *args, **options)
        with torch.no_grad():
            module.get_parameter("network.degradation_scale").add_(1e-3)
        return program

    monkeypatch.setattr("torch.onnx.export", convert_wrongly)
    with pytest.raises(ValueError, match=r"clip_image.onnx differs.*: logits by 1.0e-03, degr"):
        export_onnx(bundle)


def test_what_is_no_number_is_a_difference(graphs: dict[str, OnnxGraph]) -> None:
    class Broken(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.full((len(ids), 32), torch.nan),)

    ids = torch.full((1, 12), 3)
    differences = greatest_differences(graphs["clip_text"].data, Broken(), [ids, ids])
    assert np.isnan(differences["f_T"])


def test_a_picture_is_judged_as_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped weights: the whole picture believed, and all views asked."""
    bundle = load_bundle("tiny")
    images, _ = export_onnx(bundle)
    embedder = build_embedder(bundle)
    for label, photo, enough in (("rainy", data.astronaut, 0.0), ("raindrop", data.coffee, 2.0)):
        monkeypatch.setattr("vlmir.vlm.embedder.CERTAIN", enough)
        picture = degrade(to_float(photo()), label, seed=3, strength=0.6)
        views = with_mirrors(embedder.view_maker(picture)).numpy()
        got = run(images, views=views)
        f_I, f_D, logits = (torch.from_numpy(got[name]) for name in ("f_I", "f_D", "logits"))
        assert is_certain(logits[0]) == (label == "rainy")
        if is_certain(logits[0]):
            logits = logits[:1]
        prototypes, typical = embedder.network.prototypes, bundle.preset.embedder.typical_damage
        judged = judge(f_I[0], f_D[0], logits, prototypes, embedder.labels, typical=typical)
        seen = embedder.embed_image(picture)
        assert judged.degradation == seen.degradation == label
        assert judged.degradations == pytest.approx(seen.degradations, abs=1e-5)
        assert torch.allclose(judged.f_I, seen.f_I, rtol=1e-4, atol=1e-4)
        assert torch.allclose(judged.f_D, seen.f_D, rtol=1e-4, atol=1e-4)


def test_the_command_writes_the_same_bytes_as_files_and_entries(
    graphs: dict[str, OnnxGraph],
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(5)
    monkeypatch.setattr(sys, "argv", ["onnx_export", str(bundle.folder), str(tmp_path / "out")])
    main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["clip_image.onnx", "clip_text.onnx"]
    for name, graph in graphs.items():
        assert (tmp_path / "out" / f"{name}.onnx").read_bytes() == graph.data
        assert (tmp_path / "out" / name / "1" / "model.onnx").read_bytes() == graph.data
        assert config(tmp_path / "out", name).name == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("nowhere out", "No bundle at 'nowhere'"), ("tiny out --version 0", "begin with 1")],
)
def test_faults_of_the_user_are_told_in_one_line(
    arguments: str,
    said: str,
    small_bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = arguments.replace("tiny", str(small_bundle_folder))
    monkeypatch.setattr(sys, "argv", ["onnx_export", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and error.count("\n") == 1
    assert error.startswith("training.onnx_export: ")


def test_a_new_bundle_is_exported_with_its_onnx_files(
    tmp_path: Path,
    small_bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    preset = small_preset()
    (tmp_path / "small.json").write_text(json.dumps(preset.to_dict()))
    text = resources.files("training.configs").joinpath("tiny.toml").read_text()
    (tmp_path / "small.toml").write_text(text.replace('preset = "tiny"', 'preset = "small.json"'))
    ema = UNet(preset.sampler.unet).state_dict()
    prototypes = torch.ones(len(preset.labels), 32)
    Checkpoints(tmp_path / "2" / "sampler").save(1, {"ema": ema, "prototypes": prototypes})
    monkeypatch.chdir(tmp_path)
    command = f"export new --config small.toml --stage1 {small_bundle_folder} --stage2 2"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--release", "n-1", "--onnx", "models"])
    export.main()
    assert "models/clip_image.onnx: " in capsys.readouterr().out
    for name in ("clip_image", "clip_text"):
        model = onnx.load_model(f"models/{name}.onnx")
        notes = {note.key: note.value for note in model.metadata_props}
        assert notes["embedder"] == load_bundle("new").digests["embedder"]
        assert config(tmp_path / "models", name).name == name


def config(repository: Path, name: str) -> ModelConfig:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def test_an_entry_describes_the_graph_to_triton(
    graphs: dict[str, OnnxGraph], bundle: Bundle, tmp_path: Path
) -> None:
    for name, graph in graphs.items():
        write_entry(tmp_path, name, graph.data)
    image, text = config(tmp_path, "clip_image"), config(tmp_path, "clip_text")
    assert (image.name, image.backend, image.max_batch_size) == (
        "clip_image",
        "onnxruntime",
        MAX_BATCH,
    )
    assert [(i.name, list(i.dims)) for i in image.input] == [("views", [6, 64, 64])]
    assert [(o.name, list(o.dims)) for o in image.output] == [
        ("f_I", [32]),
        ("f_D", [32]),
        ("logits", [11]),
        ("degradations", [11]),
    ]
    assert [(i.name, i.data_type, list(i.dims)) for i in text.input] == [("ids", TYPE_INT64, [12])]
    assert image.dynamic_batching.max_queue_delay_microseconds == 0
    assert image.version_policy.HasField("all")
    assert image.parameters["release"].string_value == bundle.release
    assert image.parameters["version"].string_value == "1"
    assert json.loads(image.parameters["labels"].string_value) == list(bundle.preset.labels)


def test_a_version_never_changes(graphs: dict[str, OnnxGraph], tmp_path: Path) -> None:
    graph = graphs["clip_text"]
    write_entry(tmp_path, "clip_text", graph.data, backend="python")
    write_entry(tmp_path, "clip_text", graph.data, backend="python")
    other = onnx.load_model_from_string(graph.data)
    onnx.helper.set_model_props(other, {"release": "small-2"})
    with pytest.raises(FileExistsError, match="name a new version"):
        write_entry(tmp_path, "clip_text", other.SerializeToString(), backend="python")
    assert config(tmp_path, "clip_text").parameters["release"].string_value == "small-1"
    write_entry(tmp_path, "clip_text", other.SerializeToString(), version=2, backend="python")
    assert config(tmp_path, "clip_text").parameters["release"].string_value == "small-2"
    assert config(tmp_path, "clip_text").parameters["version"].string_value == "2"
    files = {str(p.relative_to(tmp_path / "clip_text")) for p in tmp_path.rglob("*.*")}
    versions = {f"{version}/{file}" for version in (1, 2) for file in ("model.onnx", "model.py")}
    assert files == {"config.pbtxt", *versions}
    with pytest.raises(ValueError, match="begin with 1"):
        write_entry(tmp_path, "clip_text", graph.data, version=0)
