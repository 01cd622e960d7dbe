"""Every stage's own task goes on from a checkpoint to the last bit."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.workshop import lay_out
from training.engine.checkpoints import load_checkpoint
from training.stage2 import Ema

LOOP = "steps = 4\nbatch = 4\nrate = 1e-3\nweight_decay = 0.1\nsave_every = 2\n"
STAGES = {
    "pretrain": (["clip", "blip"], ["--data", "captioned"]),
    "stage1": (["stem", "embedder"], ["--data", "photos", "pairs", "captioned", "--pretrained"]),
    "stage2": (["sampler"], ["--data", "photos", "pairs", "--no-compile", "--stage1"]),
}
"""Stage → its tasks, and its arguments; a bundle follows where the last one asks for it."""


@pytest.mark.parametrize("stage", STAGES)
def test_half_a_run_and_the_rest_of_it_are_the_whole(
    stage: str, tmp_path: Path, small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, monkeypatch, loop=LOOP, stage2="null_share = 0.3")
    tasks, arguments = STAGES[stage]
    bundle = [str(small_bundle_folder)] * (stage != "pretrain")

    def run(out: str, *more: str) -> None:
        fixed = ["--config", "small.toml", "--untracked", "--precision", "fp32", "--out", out]
        monkeypatch.setattr(sys, "argv", [stage, *fixed, *arguments, *bundle, *more])
        import_module(f"training.{stage}").main()

    run("whole")
    shutil.copytree("whole", "half")
    for task in tasks:
        (Path("half") / task / "step-00000004.pt").unlink()
    run("half", "--resume")
    for task in tasks:
        files = [Path(out) / task / "step-00000004.pt" for out in ("whole", "half")]
        whole, half = (load_checkpoint(file) for file in files)
        begun = load_checkpoint(Path("half") / task / "step-00000002.pt")
        assert whole is not None and half is not None and begun is not None
        kinds = ["model", "optimizer", *["ema", "prototypes"] * (task == "sampler")]
        for kind in kinds:
            assert same(whole[kind], half[kind]), f"{kind} of {task}"
        assert not same(begun["model"], whole["model"]) and begun["optimizer"]["state"]


def test_a_saved_average_goes_into_the_tensors_that_are_there() -> None:
    """Their device and their layout are those of the network, whatever the file's are."""
    conv = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    ema = Ema(conv, 0.9)
    own = dict(ema.average)
    ema.load({name: torch.full_like(p, 2).contiguous() for name, p in own.items()})
    assert all(ema.average[name] is p and (p == 2).all() for name, p in own.items())
    assert ema.average["weight"].is_contiguous(memory_format=torch.channels_last)
    assert not ema.average["weight"].is_contiguous()


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
