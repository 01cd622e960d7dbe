"""The commands of all stages on a very small architecture, from folders of pictures to a bundle."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.small import small_preset
from tests.unit.training.workshop import lay_out
from training import (
    adapt,
    captions,
    evaluate,
    export,
    fetch,
    pretrain,
    promote,
    register,
    stage1,
    stage2,
    table,
)
from training.engine.checkpoints import Checkpoints
from training.engine.tracking import UNTRACKED
from training.pretrained import load_embedder
from vlmir.bundle import load_bundle
from vlmir.parts import build_embedder, build_sampler, build_unet
from vlmir.vlm.clip import DegradationCLIP

README = (Path(__file__).parents[3] / "README.md").read_text("utf-8")

LOOP = "steps = 2\nbatch = 4\nrate = 1e-3\nlog_every = 1\nsave_every = 1\n"


class Workshop:
    """Folders with pictures, a config, and a way to run a stage's command."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        self.config = lay_out(folder, patch, loop=LOOP)

    def run(self, module: ModuleType, *arguments: str) -> None:
        """What ``python -m training.<module> …`` does; an exit with status 0 is none."""
        self._patch.setattr(sys, "argv", [module.__name__, *arguments])
        try:
            module.main()
        except SystemExit as end:
            if end.code:
                raise

    def stage(self, module: ModuleType, data: str, *arguments: str) -> None:
        """A stage by the small config, untracked."""
        fixed = ["--config", str(self.config)]
        if module is not captions:
            fixed += ["--untracked", "--precision", "fp32"]
        self.run(module, *fixed, "--data", *data.split(), *arguments)

    def latest(self, stage: str) -> dict[str, torch.Tensor]:
        state = Checkpoints(self.folder / "runs" / stage).latest()
        assert state is not None
        return dict(state["model"])


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def readme_commands() -> list[tuple[ModuleType, list[str]]]:
    """(Module, arguments) of the README's training commands, in their order."""
    lines = re.findall(r"^\.venv/bin/python -m (training\.\w+)(.*)$", README, re.MULTILINE)
    return [(import_module(name), shlex.split(rest, comments=True)) for name, rest in lines]


@pytest.mark.usefixtures("registry")
def test_the_readmes_commands_go_from_folders_to_a_champion(
    workshop: Workshop, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, "folder")
    stage = ["--untracked", "--precision", "fp32", "--config", str(workshop.config)]
    more = {
        pretrain: stage,
        stage1: stage,
        stage2: [*stage, "--no-compile"],
        export: ["--config", str(workshop.config)],
        evaluate: ["--only", "bench", "--only", "labels", "--setting", "one-step"],
    }
    commands = readme_commands()
    first, last = [pretrain, stage1, stage2, export], [evaluate, table, register, promote, fetch]
    assert [module for module, _ in commands] == [*first, stage2, adapt, *last]
    for module, arguments in commands:
        if module is stage1:
            workshop.stage(captions, "photos pairs")
            assert "LQ pictures" in capsys.readouterr().out
        workshop.run(module, *arguments, *more.get(module, []))
    assert load_bundle("served").digests == load_bundle("my-bundle").digests
    lines = Path("runs/stage2/metrics.jsonl").read_text().splitlines()
    psnr = next(line for line in map(json.loads, lines) if "psnr/noisy" in line)
    assert psnr["step"] == 2 and 3 < psnr["psnr/noisy"] < 40 and "psnr/rainy" in psnr
    assert [one.label for one in build_sampler(load_bundle("my-better-bundle")).adapted] == [
        "noisy"
    ]
    bundle = load_bundle("my-bundle")
    assert bundle.release == "my-1" and bundle.preset == small_preset()
    state = Checkpoints(Path("runs/stage2/sampler")).latest()
    assert state is not None
    unet = build_unet(bundle).state_dict()
    for name, average in state["ema"].items():
        assert torch.allclose(unet[name], average, rtol=1e-3, atol=1e-6), name
    embedder = build_embedder(bundle)
    assert torch.allclose(embedder.network.prototypes, state["prototypes"], rtol=1e-2, atol=1e-3)


def test_the_joint_phase_leaves_the_stem_alone_and_trains_the_rest(workshop: Workshop) -> None:
    workshop.stage(pretrain, "captioned")
    workshop.stage(stage1, "photos captioned")
    stem, joint = workshop.latest("stage1/stem"), workshop.latest("stage1/embedder")
    assert all(torch.equal(joint[f"controller.stem.{name}"], p) for name, p in stem.items())
    clip = workshop.latest("pretrain/clip")
    assert all(torch.equal(joint[f"clip.{name}"], p) for name, p in clip.items())
    fresh = DegradationCLIP(small_preset().embedder, 11).state_dict()
    lora = [name for name in fresh if "lora_B" in name]
    assert lora and all(joint[name].abs().max() > 0 for name in lora)
    # Half trained, the first phase goes on; the second was begun on another path then.
    workshop.config.write_text(workshop.config.read_text().replace(LOOP, LOOP.replace("2", "3", 1)))
    with pytest.raises(SystemExit) as stopped:
        workshop.stage(stage1, "photos captioned", "--resume")
    assert stopped.value.code == 2


def test_a_stage_goes_on_where_it_stopped(workshop: Workshop) -> None:
    workshop.stage(pretrain, "captioned", "--set", "pretrain.blip.steps=1")
    with pytest.raises(SystemExit):
        workshop.stage(pretrain, "captioned")
    workshop.stage(pretrain, "captioned", "--resume")
    state = Checkpoints(Path("runs/pretrain/blip")).latest()
    assert state is not None and state["step"] == 2


class Said(type(UNTRACKED)):  # type: ignore[misc]
    """Notes what a stage says of itself."""

    def __init__(self) -> None:
        self.folders: dict[str, Path | None] | None = None
        self.tags: dict[str, str] = {}

    def built_on(self, **folders: Path | None) -> None:
        assert self.folders is None
        self.folders = folders

    def tag(self, name: str, value: str) -> None:
        self.tags[name] = value


def test_each_stage_says_what_it_built_on(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, small_bundle_folder: Path
) -> None:
    notes = list[Said]()

    @contextmanager
    def noted(*_: object, **__: object) -> Iterator[Said]:
        notes.append(Said())
        yield notes[-1]

    monkeypatch.setattr("training.command.tracked", noted)
    for module, data, *more in (
        (pretrain, "captioned"),
        (stage1, "photos captioned"),
        (stage2, "photos", "--no-compile"),
        (stage1, "photos captioned", "--init", str(small_bundle_folder), "--out", "other"),
    ):
        common = ("--config", str(workshop.config), "--precision", "fp32")
        workshop.run(module, *common, "--data", *data.split(), *more)
    pretrained = Path("runs/pretrain")
    assert [note.folders for note in notes] == [
        {},
        {"captioner": pretrained},
        {"captioner": pretrained, "embedder": Path("runs/stage1")},
        {"captioner": small_bundle_folder},
    ]
    assert all(note.tags["data.digest"] for note in notes)


def test_training_goes_on_from_a_bundle(workshop: Workshop, small_bundle_folder: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    start = ("--init", str(small_bundle_folder))
    workshop.stage(pretrain, "captioned", *start, "--set", "pretrain.clip.steps=0")
    assert not Path("runs/pretrain/clip").exists()
    workshop.stage(stage1, "photos pairs captioned", *start, "--set", "stage1.joint.rate=1e-6")
    before = build_embedder(bundle).network.controller.state_dict()
    after = workshop.latest("stage1/embedder")
    tower = [n for n in before if n.startswith("tower.") and before[n].is_floating_point()]
    drift = [(after[f"controller.{name}"] - before[name]).abs().max().item() for name in tower]
    assert 0 < max(drift) < 1e-3
    workshop.stage(
        stage2, "photos pairs", "--stage1", str(small_bundle_folder), *start, "--no-compile"
    )
    shipped, trained = build_unet(bundle).state_dict(), workshop.latest("stage2/sampler")
    drift = [(trained[name] - shipped[name]).abs().max().item() for name in shipped]
    assert 0 < max(drift) < 0.02
    _, embedder = load_embedder(bundle.preset, None, small_bundle_folder)
    assert embedder.labels == bundle.preset.labels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data missing", "missing is no folder"),
        ("--data captioned", "Name a folder of clean photos"),
        ("--data photos", "Name one folder with captions.json"),
        ("--data photos captioned --set stage1.joint.stepz=1", "unknown keys ['stepz']"),
        ("--data photos captioned --config none.toml", "No config 'none.toml'"),
        ("--data photos captioned", "run training.pretrain first"),
    ],
)
def test_faults_of_the_user_are_told_in_one_line(
    workshop: Workshop, arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        workshop.run(stage1, "--untracked", "--config", str(workshop.config), *arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("training.stage1: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("module", [pretrain, captions, stage1, stage2, export])
def test_help_reads_well(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"python -m {module.__name__}" in text and "--preset" in text
