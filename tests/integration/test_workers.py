"""The same loop in two processes under Ray Train: the same data, the same losses, and a lost worker is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.small import small_preset
from tests.unit.training.pictures import write_photos
from tests.unit.training.toy import toy_config, train_toy
from training.engine.checkpoints import Checkpoints
from training.engine.workers import Workers, run_in_workers
from vlmir.errors import OptionError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=128 * 2**20,
            _temp_dir=str(tmp_path_factory.getbasetemp() / "r"),
            logging_level="WARNING",
        )
        yield
        ray.shutdown()


class Training:
    """What each worker does: the toy, without dropout so that one worker's losses can be compared."""

    def __init__(self, out: Path, *, dies_at: int | None = None) -> None:
        self.out, self.dies_at = out, dies_at

    def __call__(self, workers: Workers) -> None:
        torch.set_num_threads(1)
        task = train_toy(
            self.out,
            resume=True,
            workers=workers,
            dropout=0.0,
            after_step=self._die if workers.rank == 1 else None,
        )
        drawn = torch.cat(task.drawn[: toy_config().steps])
        torch.save(drawn, self.out / f"drawn-{workers.rank}.pt")

    def _die(self, step: int) -> None:
        once = self.out / "died"
        if step == self.dies_at and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    alone = train_toy(tmp_path / "one", dropout=0.0)
    run_in_workers(2, Training(tmp_path / "two"), tmp_path / "ray")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(two[step] == pytest.approx(one[step], rel=1e-4) for step in one)
    parts = [torch.load(tmp_path / "two" / f"drawn-{rank}.pt") for rank in range(2)]
    seen, whole = torch.cat(parts), torch.cat(alone.drawn[: toy_config().steps])
    assert torch.equal(seen.sort(0).values, whole.sort(0).values)


def test_a_lost_worker_is_replaced(tmp_path: Path) -> None:
    train_toy(tmp_path / "one", dropout=0.0)
    run_in_workers(2, Training(tmp_path / "two", dies_at=8), tmp_path / "ray")
    assert (tmp_path / "two" / "died").exists()
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert all(two[step] == pytest.approx(one[step], rel=1e-4) for step in one)
    state = Checkpoints(tmp_path / "two" / "toy").latest()
    assert state is not None and state["step"] == 12


class Failing:
    """The first worker alone meets a fault of the user, and the others wait for it."""

    def __init__(self, tries: Path) -> None:
        self.tries = tries

    def __call__(self, workers: Workers) -> None:
        with self.tries.open("a") as file:
            file.write(f"{workers.rank}\n")
        with workers.first_alone():
            if workers.rank == 0:
                raise FileNotFoundError("photos is missing")


def test_a_fault_of_the_user_is_told_and_not_tried_again(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(OptionError, match=r"^photos is missing$"):
        run_in_workers(2, Failing(tmp_path / "tries"), tmp_path / "ray")
    assert sorted((tmp_path / "tries").read_text().split()) == ["0", "1"]
    assert time.monotonic() - began < 60


def test_a_stage_stops_and_goes_on_where_it_was_started(
    tmp_path: Path, small_bundle_folder: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "small.json").write_text(json.dumps(small_preset().to_dict()))
    shutil.copytree(small_bundle_folder, tmp_path / "stage1")
    config = ROOT / "training" / "configs" / "tiny.toml"
    steps = 60
    changes = {
        "preset": "small.json",
        "stage2.size": 32,
        "stage2.phases": [],
        "stage2.loop.steps": steps,
        "stage2.loop.batch": 2,
        "stage2.loop.log_every": 1,
        "stage2.loop.validate_every": 0,
    }
    command = [sys.executable, "-m", "training.stage2", "--config", str(config)]
    command += ["--data", "photos", "--pool", "pool", "--stage1", "stage1"]
    command += ["--workers", "2", "--threads", "1", "--no-compile", "--precision", "fp32"]
    for key, value in changes.items():
        command += ["--set", f"{key}={value}"]
    here = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "RAY_ADDRESS": "local",
    }

    def start(*more: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, *more], cwd=tmp_path, env=here, text=True, stdout=pipe, stderr=pipe
        )

    out = tmp_path / "runs" / "stage2"
    running = start()
    deadline = time.monotonic() + 150
    while not (out / "metrics.jsonl").is_file():
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said, errors = running.communicate(timeout=100)
    assert running.returncode == 0, errors
    assert "stopped after step" in said
    state = Checkpoints(out / "sampler").latest()
    assert state is not None and 0 < state["step"] < steps
    refused = subprocess.run(command, cwd=tmp_path, env=here, text=True, capture_output=True)
    assert refused.returncode == 2 and "go on with --resume" in refused.stderr
    done = start("--resume")
    errors = done.communicate(timeout=150)[1]
    assert done.returncode == 0, errors
    assert sorted(losses(out)) == list(range(1, steps + 1))

    from mlflow import MlflowClient

    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(
        json.loads((out / "run.json").read_text())["run"]
    )
    assert run.info.status == "FINISHED" and run.data.params["workers"] == "2"
    assert (
        run.data.metrics["sampler/loss"]
        and run.data.tags["mlflow.source.name"] == "training.stage2"
    )
