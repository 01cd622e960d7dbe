"""What a run leaves behind in MLflow: parameters, metrics per step, pictures, files, and where it came from.

``MLFLOW_TRACKING_URI`` names the server. Without it the same goes into a database and a folder under ``runs/mlflow``,
which ``make mlflow`` shows. Each stage is a run nested under that of the model; what a stage built on stands in its
tags, as the stage itself says when it has loaded it. A tracking server that falls silent is said once and stops
nothing: the numbers are in ``metrics.jsonl`` as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vlmir.errors import UnavailableError

if TYPE_CHECKING:  # it takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "RECORD",
    "UNTRACKED",
    "RunRecord",
    "Tracker",
    "choose_experiment",
    "find_run",
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

    def built_on(self, **folders: Path | None) -> None:
        """Say what was loaded: name → the folder of the stage that made it; None where no stage did."""


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

    def built_on(self, **folders: Path | None) -> None:
        pass


UNTRACKED: Tracker = _Untracked()
"""For workers other than the first."""


class RunRecord:
    """The MLflow run of a stage that is being written, in the experiment that was chosen."""

    def __init__(self, run_id: str, model: str, out: Path, parent: str | None = None) -> None:
        """Write to a run.

        Args:
            run_id: The run's.
            model: Name of the model; a run that holds those of its stages is called so.
            out: The stage's folder, which keeps the ids in ``run.json``.
            parent: The run that holds this one, where that is known already.
        """
        from mlflow import MlflowClient

        self.run_id = run_id
        self._model, self._out, self._parent = model, out, parent
        self._client = MlflowClient()
        self._silent = False
        self._keep()

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

    def built_on(self, **folders: Path | None) -> None:
        """Name the runs of what was loaded by the tags ``vlmir.<name>_run``.

        The run that holds one of them holds this one, too; where none is recorded, a new one does.

        Args:
            **folders: Name → folder of the stage that made it; None where no stage did.
        """
        before = {name: r for name, folder in folders.items() if folder and (r := _record(folder))}
        for name, record in before.items():
            self.tag(f"vlmir.{name}_run", record["run"])
        above = [record["parent"] for record in before.values() if "parent" in record]
        self._try(lambda: self._nest(above[0] if above else None))

    def end(self, status: str) -> None:
        """End the run: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        import mlflow

        self._try(lambda: mlflow.end_run(status))

    def _nest(self, parent: str | None) -> None:
        """Put the run into another; None: into the one that holds it, or a new one."""
        self._parent = parent or self._parent or _begin_model(self._client, self._model)
        self._keep()
        self._client.set_tag(self.run_id, "mlflow.parentRunId", self._parent)

    def _keep(self) -> None:
        record = {"run": self.run_id} | ({"parent": self._parent} if self._parent else {})
        self._out.mkdir(parents=True, exist_ok=True)
        (self._out / RECORD).write_text(json.dumps(record), encoding="utf-8")

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
    resumes: bool = False,
    server: str | None = None,
) -> Iterator[RunRecord]:
    """Record a stage while the block runs.

    Args:
        model: Name of the model; its experiment is ``vlmir-<model>``.
        stage: Name of the stage, and of its run.
        out: The stage's folder.
        params: Nested data; recorded under dotted names.
        resumes: Whether the stage goes on from a checkpoint in ``out``; then its run goes on, too, if it is there.
        server: The tracking server; None: that of :func:`tracking_uri`.

    Raises:
        UnavailableError: The tracking server cannot be reached; nothing was trained yet.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    # A server that is gone must not hold up a step for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    mlflow.set_tracking_uri(server or tracking_uri())
    try:
        record = _begin(model, stage, out, params, resumes=resumes)
    except MlflowException as error:
        raise UnavailableError(
            f"MLflow does not record: {error}; --untracked trains without."
        ) from error
    status = "FAILED"
    try:
        yield record
        status = "FINISHED"
    except SystemExit:  # asked to stop: neither finished nor failed
        status = "KILLED"
        raise
    finally:
        record.end(status)


def _begin(
    model: str, stage: str, out: Path, params: Mapping[str, Any], *, resumes: bool
) -> RunRecord:
    """Begin the run of a stage, or go on in it."""
    import mlflow

    choose_experiment(f"vlmir-{model}")
    own = _own(model, out) if resumes else None
    run = mlflow.start_run(
        run_id=own["run"] if own else None,
        run_name=None if own else stage,
        tags={"vlmir.stage": stage, **_source(stage)},
        log_system_metrics=True,
    )
    if own is None:
        mlflow.log_params(dict(_flat(params)))
    return RunRecord(run.info.run_id, model, out, own.get("parent") if own else None)


def _own(model: str, out: Path) -> dict[str, str] | None:
    """What names the run of the stage in ``out``, if the server has it in the model's experiment."""
    import mlflow

    record = _record(out)
    if record is None:
        return None
    experiment = mlflow.get_experiment_by_name(f"vlmir-{model}")
    run = find_run(mlflow.MlflowClient(), record["run"])
    if run and experiment and run.info.experiment_id == experiment.experiment_id:
        return record
    print(f"run {record['run']} of {out} is not on this server: a new one begins", file=sys.stderr)
    return None


def find_run(client: MlflowClient, run: str) -> Run | None:
    """A run that the server has and that takes entries, else None."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    # A deleted run can be read, but takes no more entries.
    return found if found.info.lifecycle_stage == "active" else None


def _source(stage: str) -> dict[str, str]:
    """Tags of the code that runs; MLflow looks at the script that was started, which is Ray's in a worker."""
    file = Path(__file__)
    name = {"mlflow.source.name": f"training.{stage}"}
    commands = (["git", "ls-files", "--error-unmatch", file.name], ["git", "rev-parse", "HEAD"])
    try:
        said = [
            subprocess.run(c, cwd=file.parent, check=True, capture_output=True, text=True).stdout
            for c in commands
        ]
    except (OSError, subprocess.CalledProcessError):  # installed, or without git
        return name
    return name | {"mlflow.source.git.commit": said[-1].strip()}


def choose_experiment(name: str) -> None:
    """Work in an experiment; made with a folder for its files where there is no server."""
    import mlflow

    if mlflow.get_experiment_by_name(name) is None:
        local = mlflow.get_tracking_uri().startswith("sqlite:")
        mlflow.create_experiment(name, (LOCAL.resolve() / "files").as_uri() if local else None)
    mlflow.set_experiment(name)


def _begin_model(client: MlflowClient, model: str) -> str:
    """The run that holds the runs of all stages of one model."""
    import mlflow

    experiment = mlflow.get_experiment_by_name(f"vlmir-{model}")
    assert experiment is not None  # it was chosen
    run = client.create_run(experiment.experiment_id, run_name=model)
    client.set_terminated(run.info.run_id)
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
