"""What a run leaves in MLflow, recorded without a server, and that a silent server stops nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.toy import ToyTask, toy_config
from training.compute import Compute
from training.loop import Run, fit
from training.tracking import RunRecord, tracked, tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")


@pytest.fixture(autouse=True)
def local_store(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    import mlflow

    place = tmp_path / "runs" / "mlflow"
    place.mkdir(parents=True)
    shutil.copyfile(empty_store, place / "mlflow.db")
    # MLflow sets this variable itself; so it is put back afterwards.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.chdir(tmp_path)
    yield
    while mlflow.active_run():
        mlflow.end_run()


def train(out: Path, steps: int, *, built_on: dict[str, Path] | None = None) -> None:
    with tracked(
        "toy", out.name, out, params={"loop": {"steps": steps}}, built_on=built_on or {}
    ) as tracker:
        run = Run(out=out, resume=True, compute=Compute("fp32"), tracker=tracker)
        fit(ToyTask(run), toy_config(steps=steps), run)
        tracker.image("sheet", np.zeros((4, 6, 3), np.uint8), steps)
        tracker.files(out / "metrics.jsonl", "log")


def runs_by_name() -> dict[str, object]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("vlmir-toy")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_stage_is_recorded_with_all_that_it_did(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    train(tmp_path / "one", 12)
    client, run = MlflowClient(tracking_uri()), runs_by_name()["one"]
    assert run.info.status == "FINISHED" and run.data.params == {"loop.steps": "12"}
    assert run.data.tags["vlmir.stage"] == "one" and run.data.tags["mlflow.user"]
    losses = client.get_metric_history(run.info.run_id, "toy/loss")
    text = (tmp_path / "one" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {m.step: m.value for m in losses} == {x["step"]: x["loss"] for x in lines if "loss" in x}
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert files == {"images", "log"}


def test_stages_are_nested_and_name_what_they_built_on(tmp_path: Path) -> None:
    train(tmp_path / "one", 2)
    train(tmp_path / "two", 2, built_on={"embedder": tmp_path / "one"})
    runs = runs_by_name()
    assert set(runs) == {"toy", "one", "two"}
    parents = {runs[name].data.tags["mlflow.parentRunId"] for name in ("one", "two")}
    assert parents == {runs["toy"].info.run_id}
    assert runs["two"].data.tags["vlmir.embedder_run"] == runs["one"].info.run_id


def test_a_resumed_stage_goes_on_in_its_run(tmp_path: Path) -> None:
    train(tmp_path / "one", 4)
    train(tmp_path / "one", 8)
    assert len(runs_by_name()) == 2  # the stage's, and the one that holds it
    assert runs_by_name()["one"].data.metrics["toy/loss"] is not None


def test_a_stopped_stage_is_neither_finished_nor_failed(tmp_path: Path) -> None:
    for name, error in (("stopped", SystemExit(0)), ("failed", ValueError("x"))):
        with (
            pytest.raises(type(error)),
            tracked("toy", name, tmp_path / name, params={}, built_on={}),
        ):
            raise error
    status = {name: run.info.status for name, run in runs_by_name().items()}
    assert (status["stopped"], status["failed"]) == ("KILLED", "FAILED")


def test_a_server_that_falls_silent_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord("no-such-run")
    for step in range(3):
        record.metrics({"loss": 1.0}, step)
        record.image("sheet", np.zeros((4, 4, 3), np.uint8), step)
    said = capsys.readouterr().err
    assert said.count("training goes on") == 1
