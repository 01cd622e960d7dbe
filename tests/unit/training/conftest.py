"""What several tests of training share: a folder of benchmarks, and a registry without a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest

from tests.unit.training.pictures import scene

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.onnx_export import OnnxGraph


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's, made once since that takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture(scope="session")
def small_graphs(small_bundle_folder: Path) -> tuple[OnnxGraph, ...]:
    """The ONNX graphs of the small bundle, made once since that takes seconds."""
    from training.onnx_export import export_onnx
    from vlmir.bundle import load_bundle

    return export_onnx(load_bundle(small_bundle_folder))


@pytest.fixture
def registry(
    empty_store: Path,
    small_graphs: tuple[OnnxGraph, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MlflowClient]:
    """An empty registry in the working folder, where the commands find it."""
    from training import register
    from training.release.registry import connect

    place = tmp_path / "work" / "runs" / "mlflow"
    place.mkdir(parents=True)
    shutil.copyfile(empty_store, place / "mlflow.db")
    # MLflow sets this variable itself; so it is put back afterwards.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(register, "export_onnx", lambda bundle: small_graphs)
    yield connect()
    import mlflow

    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the benchmarks, two small pictures each."""
    from training.measure.benches import noisy_copy

    folder = tmp_path_factory.mktemp("data")
    for bench in ("noisy_cbsd68", "hazy_sots_indoor", "rainy_rain100h", "raindrop"):
        for side in ("lq", "gt"):
            (folder / "bench" / bench / side).mkdir(parents=True)
            for number in range(2):
                gt = scene(number)
                picture = gt if side == "gt" else noisy_copy(gt, 7)
                cv2.imwrite(str(folder / "bench" / bench / side / f"{number}.png"), picture)
    return folder
