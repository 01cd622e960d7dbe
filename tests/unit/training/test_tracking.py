"""What a run leaves in MLflow, recorded without a server, and that a silent server stops nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from tests.unit.training.toy import ToyTask, toy_config
from training.engine.compute import Compute
from training.engine.loop import Run, fit
from training.engine.tracking import tracked, tracking_uri
from vlmir.errors import UnavailableError

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

ROOT = Path(__file__).parents[3]

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


def train(
    out: Path, steps: int, *, built_on: dict[str, Path | None] | None = None, resumes: bool = False
) -> None:
    with tracked(
        "toy", out.name, out, params={"loop": {"steps": steps}}, resumes=resumes
    ) as tracker:
        tracker.built_on(**(built_on or {}))
        run = Run(out=out, resume=True, compute=Compute("fp32"), tracker=tracker)
        fit(ToyTask(run), toy_config(steps=steps), run)
        tracker.image("sheet", np.zeros((4, 6, 3), np.uint8), steps)
        tracker.files(out / "metrics.jsonl", "log")


def runs_by_id() -> dict[str, MlflowRun]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("vlmir-toy")
    assert experiment is not None
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


def runs_by_name() -> dict[str, MlflowRun]:
    return {run.info.run_name: run for run in runs_by_id().values()}


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


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the code is in no repository")
def test_a_run_names_the_code_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow asks where the script that was started lies; Ray's worker script lies elsewhere.
    monkeypatch.setattr("sys.argv", [str(tmp_path / "worker.py")])
    with tracked("toy", "one", tmp_path / "one", params={}):
        pass
    tags = runs_by_name()["one"].data.tags
    assert tags["mlflow.source.name"] == "training.one"
    assert re.fullmatch("[0-9a-f]{40}", tags["mlflow.source.git.commit"])


def test_code_that_is_in_no_repository_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.engine.tracking.__file__", str(tmp_path / "tracking.py"))
    monkeypatch.setattr("sys.argv", [str(tmp_path / "worker.py")])
    with tracked("toy", "one", tmp_path / "one", params={}):
        pass
    assert "mlflow.source.git.commit" not in runs_by_name()["one"].data.tags


def test_stages_are_nested_and_name_what_they_built_on(tmp_path: Path) -> None:
    train(tmp_path / "one", 2)
    train(tmp_path / "two", 2, built_on={"embedder": tmp_path / "one"})
    runs = runs_by_name()
    assert set(runs) == {"toy", "one", "two"}
    parents = {runs[name].data.tags["mlflow.parentRunId"] for name in ("one", "two")}
    assert parents == {runs["toy"].info.run_id}
    assert runs["two"].data.tags["vlmir.embedder_run"] == runs["one"].info.run_id


def test_what_builds_on_no_stage_begins_a_model_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(tmp_path / name, 2, built_on={"captioner": None, "embedder": tmp_path / "bundle"})
    runs = runs_by_name()
    parents = [runs[name].data.tags["mlflow.parentRunId"] for name in ("one", "two")]
    assert len(set(parents)) == 2
    assert "vlmir.captioner_run" not in runs["two"].data.tags


def test_a_resumed_stage_goes_on_in_its_run(tmp_path: Path) -> None:
    train(tmp_path / "one", 4)
    train(tmp_path / "one", 8, resumes=True)
    runs = runs_by_name()
    assert len(runs) == 2  # the stage's, and the one that holds it
    assert runs["one"].data.metrics["toy/loss"] is not None
    assert "vlmir.embedder_run" not in runs["one"].data.tags


def test_a_stage_that_begins_anew_begins_a_new_run(tmp_path: Path) -> None:
    ids = []
    for steps in (2, 4):
        shutil.rmtree(tmp_path / "one" / "toy", ignore_errors=True)
        train(tmp_path / "one", steps)
        ids.append(json.loads((tmp_path / "one" / "run.json").read_text())["run"])
    assert ids[0] != ids[1]
    assert runs_by_id()[ids[1]].data.params == {"loop.steps": "4"}


@pytest.mark.parametrize("gone", ["elsewhere", "deleted"])
def test_a_run_that_the_server_has_not_is_begun_anew(
    tmp_path: Path, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    train(tmp_path / "one", 2)
    record = tmp_path / "one" / "run.json"
    if gone == "elsewhere":
        record.write_text(json.dumps({"run": "0" * 32, "parent": "1" * 32}))
    else:
        MlflowClient(tracking_uri()).delete_run(json.loads(record.read_text())["run"])
    before = json.loads(record.read_text())
    train(tmp_path / "one", 4, resumes=True)
    after = json.loads(record.read_text())
    assert after["run"] in runs_by_id() and after["parent"] != before["parent"]
    assert capsys.readouterr().err.count("a new one begins\n") == 1


def test_a_stopped_stage_is_neither_finished_nor_failed(tmp_path: Path) -> None:
    for name, error in (("stopped", SystemExit(0)), ("failed", ValueError("x"))):
        with (
            pytest.raises(type(error)),
            tracked("toy", name, tmp_path / name, params={}),
        ):
            raise error
    status = {name: run.info.status for name, run in runs_by_name().items()}
    assert (status["stopped"], status["failed"]) == ("KILLED", "FAILED")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_server_that_falls_silent_stops_nothing(
    stopped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    def silent(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("nobody answers")

    end = pytest.raises(SystemExit, match="130") if stopped else nullcontext()
    with end, tracked("toy", "one", tmp_path / "one", params={}) as tracker:
        for name in ("set_terminated", "log_image", "set_tag", "log_artifact", "create_run"):
            monkeypatch.setattr(mlflow.MlflowClient, name, silent)
        monkeypatch.setattr(mlflow, "log_metrics", silent)
        run = Run(out=tmp_path / "one", compute=Compute("fp32"), tracker=tracker)
        tracker.built_on()
        fit(ToyTask(run), toy_config(steps=2), run)
        tracker.image("sheet", np.zeros((4, 4, 3), np.uint8), 2)
        tracker.files(tmp_path / "one" / "metrics.jsonl", "log")
        if stopped:
            raise SystemExit(130)
    assert capsys.readouterr().err.count("nobody answers; training goes on\n") == 1


def test_a_server_that_never_answers_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = "http://127.0.0.1:9"
    with (
        pytest.raises(UnavailableError, match="--untracked"),
        tracked("toy", "one", tmp_path / "one", params={}, server=nobody),
    ):
        pytest.fail("it went on")
