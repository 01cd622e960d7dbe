"""What a run leaves behind in MLflow: parameters, metrics per step, pictures, files, and where it came from.

``MLFLOW_TRACKING_URI`` names the server. Without it the same goes into a database and a folder under ``runs/mlflow``,
which ``make mlflow`` shows. Each stage is a run nested under that of the model; what a stage built on stands in its
tags. A tracking server that falls silent is said once and stops nothing: the numbers are in ``metrics.jsonl`` as well.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "RECORD",
    "UNTRACKED",
    "RunRecord",
    "Tracker",
    "choose_experiment",
    "tracked",
    "tracking_uri",
]

LOCAL = Path("runs/mlflow")
"""Where runs are recorded without a server."""

RECORD = "run.json"
"""File in a stage's folder that names its MLflow run, so that resuming and later stages find it."""


class Tracker(Protocol):
    """Where a training loop's numbers and pictures go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""

    def image(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        """Record a picture, H×W×3 RGB, at a step."""

    def files(self, path: Path, folder: str) -> None:
        """Record a file, or all files of a folder, in a folder of the run."""

    def tag(self, name: str, value: str) -> None:
        """Say something of the whole run."""


class _Untracked:
    """Records nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        pass

    def image(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        pass

    def files(self, path: Path, folder: str) -> None:
        pass

    def tag(self, name: str, value: str) -> None:
        pass


UNTRACKED: Tracker = _Untracked()
"""For workers other than the first."""


class RunRecord:
    """An MLflow run that is being written."""

    def __init__(self, run_id: str) -> None:
        from mlflow import MlflowClient

        self.run_id = run_id
        self._client = MlflowClient()
        self._silent = False

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""
        import mlflow

        self._try(lambda: mlflow.log_metrics(dict(values), step=step, run_id=self.run_id))

    def image(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        """Record a picture, H×W×3 RGB, at a step."""
        self._try(lambda: self._client.log_image(self.run_id, pixels, key=name, step=step))

    def files(self, path: Path, folder: str) -> None:
        """Record a file, or all files of a folder, in a folder of the run."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._try(lambda: log(self.run_id, str(path), folder))

    def tag(self, name: str, value: str) -> None:
        """Say something of the whole run."""
        self._try(lambda: self._client.set_tag(self.run_id, name, value))

    def _try(self, record: Callable[[], object]) -> None:
        """Whatever the server does, training goes on."""
        try:
            record()
        except Exception as error:
            if not self._silent:
                print(f"MLflow does not record: {error}; training goes on", file=sys.stderr)
            self._silent = True
        else:
            self._silent = False


def tracking_uri() -> str:
    """The tracking server's address, or that of the local database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{LOCAL.resolve()}/mlflow.db"


@contextmanager
def tracked(
    model: str,
    stage: str,
    out: Path,
    *,
    params: Mapping[str, Any],
    built_on: Mapping[str, Path],
) -> Iterator[RunRecord]:
    """Record a stage while the block runs; a resumed stage goes on in its own run.

    Args:
        model: Name of the model; its experiment is ``vlmir-<model>``.
        stage: Name of the stage, and of its run.
        out: The stage's folder.
        params: Nested data; recorded under dotted names.
        built_on: Name → folder of each stage before it; their runs are named by the tags ``vlmir.<name>_run``, and the
            run that holds them holds this one, too.

    Raises:
        mlflow.exceptions.MlflowException: The tracking server cannot be reached; nothing was trained yet.
    """
    import mlflow

    # A server that is gone must not hold up a step for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    mlflow.set_tracking_uri(tracking_uri())
    choose_experiment(f"vlmir-{model}")
    before = {name: record for name, folder in built_on.items() if (record := _record(folder))}
    own = _record(out)
    parent = (own or next(iter(before.values()), {})).get("parent") or _begin_model(model)
    lineage = {f"vlmir.{name}_run": record["run"] for name, record in before.items()}
    with mlflow.start_run(
        run_id=own["run"] if own else None,
        run_name=None if own else stage,
        parent_run_id=None if own else parent,
        tags={"vlmir.stage": stage, **lineage},
        log_system_metrics=True,
    ) as run:
        out.mkdir(parents=True, exist_ok=True)
        record = {"run": run.info.run_id, "parent": parent}
        (out / RECORD).write_text(json.dumps(record), encoding="utf-8")
        if own is None:
            mlflow.log_params(dict(_flat(params)))
        try:
            yield RunRecord(run.info.run_id)
        except SystemExit:  # asked to stop: neither finished nor failed
            mlflow.end_run("KILLED")
            raise


def choose_experiment(name: str) -> None:
    """Work in an experiment; made with a folder for its files where there is no server."""
    import mlflow

    if mlflow.get_experiment_by_name(name) is None:
        local = mlflow.get_tracking_uri().startswith("sqlite:")
        mlflow.create_experiment(name, (LOCAL.resolve() / "files").as_uri() if local else None)
    mlflow.set_experiment(name)


def _begin_model(model: str) -> str:
    """The run that holds the runs of all stages of one model."""
    import mlflow

    with mlflow.start_run(run_name=model, log_system_metrics=False) as run:
        return str(run.info.run_id)


def _record(folder: Path) -> dict[str, str] | None:
    file = folder / RECORD
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else None


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
