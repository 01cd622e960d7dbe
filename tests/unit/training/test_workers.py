"""What can be said of several workers without starting any; tests/integration/test_workers.py starts them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import stage1
from training.command import check_batches
from training.config import load_config
from training.engine.workers import LOOK_EVERY, Workers, _connect
from vlmir.errors import OptionError


@pytest.mark.parametrize(
    ("stage", "change", "workers", "said"),
    [
        ("stage1", "stage1.joint.batch=10", 2, "half of stage1.joint.batch, 5, cannot be shared"),
        ("stage1", "stage1.stem.batch=9", 2, "stage1.stem.batch, 9, cannot be shared evenly by 2"),
        ("stage2", "stage2.loop.batch=9", 3, "stage2.phases[0].batch, 8, cannot"),
        ("pretrain", "pretrain.blip.batch=9", 2, "pretrain.blip.batch, 9, cannot"),
    ],
)
def test_batches_that_workers_cannot_share_are_refused(
    stage: str, change: str, workers: int, said: str
) -> None:
    with pytest.raises(OptionError) as caught:
        check_batches(load_config("tiny", [change]), stage, workers)
    assert said in str(caught.value)


def test_only_the_batches_of_the_stages_own_loops_count() -> None:
    config = load_config("tiny", ["stage1.stem.batch=9", "stage1.stem.steps=0"])
    check_batches(config, "stage1", 2)
    check_batches(load_config("tiny", ["stage1.joint.batch=9"]), "stage2", 2)


@pytest.mark.parametrize(
    ("connected", "cluster", "asked"),
    [
        (True, False, []),
        (False, False, [{"num_cpus": 3, "include_dashboard": False}]),
        (False, True, [{"num_cpus": 3, "include_dashboard": False}, {}]),
    ],
)
def test_a_running_ray_is_used(
    connected: bool, cluster: bool, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    calls = []

    def init(**given: Any) -> None:
        calls.append(given)
        if cluster and "num_cpus" in given:
            raise ValueError("When connecting to an existing cluster, num_cpus must not be given.")

    monkeypatch.setattr(ray, "is_initialized", lambda: connected)
    monkeypatch.setattr(ray, "init", init)
    _connect(3)
    assert calls == asked


def test_workers_agree_every_few_steps_whether_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Workers, "any", lambda self, found: asked.append(found) or True)
    workers = Workers(1, 2)
    stopping = [workers.stopping(step, asked=True) for step in range(1, 2 * LOOK_EVERY + 1)]
    assert stopping.count(True) == 2 and asked == [False, False]
    assert Workers().stopping(1, asked=True) and not Workers().stopping(1, asked=False)


@pytest.fixture
def stage_one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command of stage 1; gives its exit status."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stage1", *arguments])
        with pytest.raises(SystemExit) as stopped:
            stage1.main()
        return int(stopped.value.code or 0)

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--set stage1.joint.batch=10", "half of stage1.joint.batch, 5, cannot be shared evenly"),
        ("--set stage1.joint.stepz=1", "unknown keys ['stepz']"),
    ],
)
def test_faults_are_told_before_workers_start(
    arguments: str,
    said: str,
    stage_one: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert stage_one("--workers", "2", "--out", str(out), *arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("training.stage1: ") and said in error and error.count("\n") == 1
    assert not out.exists()


def test_a_run_that_is_not_resumed_keeps_its_record(
    stage_one: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "embedder").mkdir()
    (tmp_path / "embedder" / "step-00000001.pt").touch()
    (tmp_path / "run.json").write_text("{}")
    assert stage_one("--out", str(tmp_path)) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == "{}"
