"""The loop: it resumes to the last bit however it ended, keeps the last checkpoints, and overwrites no run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.unit.training.toy import toy_config, train_toy
from training.engine.checkpoints import Checkpoints, load_checkpoint, save_checkpoint
from training.engine.loop import cosine_rate, seed_of
from training.engine.workers import Workers
from vlmir.errors import OptionError

ROOT = Path(__file__).parents[3]


def losses(out: Path) -> dict[int, float]:
    """Step → loss; of a step taken twice the later one."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


def final_state(out: Path) -> dict[str, torch.Tensor]:
    """Model, moving average and optimizer of the last checkpoint, flat."""
    state = Checkpoints(out / "toy").latest()
    assert state is not None
    flat = {f"model.{name}": p for name, p in state["model"].items()}
    flat |= {f"ema.{name}": p for name, p in state["ema"].items()}
    for number, moments in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    return flat


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    a, b = final_state(one), final_state(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(out: Path, steps: int, *flags: str) -> subprocess.Popen[str]:
    """The toy in a process of its own."""
    command = [sys.executable, "-m", "tests.unit.training.toy", str(out), str(steps), *flags]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while not (out / "metrics.jsonl").is_file() or max(losses(out), default=0) < step:
        assert time.monotonic() < deadline, "the process takes no steps"
        time.sleep(0.02)


def test_a_run_in_parts_is_the_run_in_one(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole")
    for steps in (4, 9):  # the schedule is that of the whole run
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "training.engine.loop.cosine_rate", lambda s, _: cosine_rate(s, toy_config())
            )
            train_toy(tmp_path / "parts", steps=steps, resume=steps > 4)
    train_toy(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_run_resumes_to_the_last_bit(tmp_path: Path) -> None:
    steps = 3000
    process = start(tmp_path / "killed", steps)
    wait_for_step(tmp_path / "killed", 20)
    process.kill()
    process.communicate()
    assert 20 <= max(losses(tmp_path / "killed")) < steps
    saved = Checkpoints(tmp_path / "killed" / "toy").latest()
    assert saved is not None
    # The rest in this process, and the same from the beginning.
    end = saved["step"] + 30
    for out, resume in ((tmp_path / "killed", True), (tmp_path / "whole", False)):
        with pytest.MonkeyPatch.context() as patch:
            whole = toy_config(steps=steps)
            patch.setattr(
                "training.engine.loop.cosine_rate", lambda s, _, w=whole: cosine_rate(s, w)
            )
            train_toy(out, steps=end, resume=resume, save_every=7)
    for step, loss in losses(tmp_path / "whole").items():
        assert losses(tmp_path / "killed")[step] == loss
    a, b = final_state(tmp_path / "killed"), final_state(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_reports_do_not_depend_on_where_a_run_was_cut(tmp_path: Path) -> None:
    sizes = {"log_every": 5, "save_every": 7}
    train_toy(tmp_path / "whole", steps=15, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        whole = toy_config(steps=15)
        patch.setattr("training.engine.loop.cosine_rate", lambda s, _: cosine_rate(s, whole))
        train_toy(tmp_path / "parts", steps=7, **sizes)
    train_toy(tmp_path / "parts", steps=15, resume=True, **sizes)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "parts")) == [5, 10, 15]


def test_a_run_is_resumed_with_the_same_seed_and_data(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4)
    for changes, said in (({"seed": 3}, "seed 0, not 3"), ({"data": "b"}, "data 'a', not 'b'")):
        with pytest.raises(OptionError, match=f"holds a run with {said}: say the same"):
            train_toy(tmp_path, resume=True, **changes)
    train_toy(tmp_path, resume=True)


def test_seeds_differ_wherever_a_number_does() -> None:
    seeds = {
        seed_of(seed, step, rank) for seed in (0, 2**31) for step in range(9) for rank in (0, 1)
    }
    assert len(seeds) == 36 and all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_its_last_step(tmp_path: Path, number: int, status: int) -> None:
    process = start(tmp_path, 1_000_000)
    wait_for_step(tmp_path, 3)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status
    state = Checkpoints(tmp_path / "toy").latest()
    assert state is not None and state["step"] == max(losses(tmp_path))
    assert (
        said.splitlines()[-1] == f"stopped after step {state['step']}; --resume goes on from there"
    )


def test_a_finished_run_is_not_begun_anew_by_mistake(tmp_path: Path) -> None:
    train_toy(tmp_path)
    with pytest.raises(OptionError, match="run of 12 steps: go on with --resume, or name another"):
        train_toy(tmp_path)
    before = final_state(tmp_path)
    train_toy(tmp_path, resume=True)
    assert all(torch.equal(before[name], p) for name, p in final_state(tmp_path).items())


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    train_toy(tmp_path, save_every=2)
    names = [file.name for file in Checkpoints(tmp_path / "toy").files]
    assert names == ["step-00000010.pt", "step-00000012.pt"]


def test_checkpoints_are_atomic_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "state.pt"
    assert load_checkpoint(file) is None
    save_checkpoint(file, {"step": 3, "w": torch.ones(2)})
    state = load_checkpoint(file)
    assert state is not None and state["step"] == 3
    assert [path.name for path in file.parent.iterdir()] == ["state.pt"]


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run training\.stage1 first"):
        Checkpoints(tmp_path / "embedder").require("training.stage1")


def test_learning_rate_rises_then_falls() -> None:
    config = toy_config(steps=100, warmup=10, rate=1.0)
    rates = [cosine_rate(step, config) for step in range(101)]
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0 and rates[-1] == pytest.approx(0.01)


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    parts = [set(Workers(rank, 3).share(9)) for rank in range(3)]
    assert set.union(*parts) == set(range(9)) and all(len(part) == 3 for part in parts)
    with pytest.raises(OptionError, match="shared evenly by 2 workers"):
        Workers(0, 2).share(9)


def test_reports_say_speed_and_memory(tmp_path: Path) -> None:
    train_toy(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["steps_per_s"] > 0 and line["waiting"] >= 0 for line in lines if "loss" in line)
    assert lines[-1]["peak_memory_mib"] > 50
