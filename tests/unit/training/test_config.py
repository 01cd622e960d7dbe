"""Training configs: those that ship are whole and fit their presets, and a fault in one is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.small import small_preset
from tests.unit.training.pictures import scene
from training.config import CONFIGS, load_config
from training.data.conditions import no_conditions
from training.data.crops import CropLoader
from training.data.pool import build_pool
from training.engine.compute import Compute
from training.engine.loop import Run, fit
from training.stage2 import SamplerTask
from vlmir.config import load_preset
from vlmir.diffusion import OBJECTIVES
from vlmir.errors import BundleError, OptionError, VlmirError
from vlmir.nn import UNet


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_trains(name: str, tmp_path: Path) -> None:
    config = load_config(name).stage2
    prediction = load_preset(load_config(name).preset).sampler.prediction
    assert OBJECTIVES[config.objective] == prediction
    preset = small_preset()
    preset = replace(preset, sampler=replace(preset.sampler, prediction=prediction))
    pool = build_pool(tmp_path / "pool", [scene(i) for i in range(2)], [])
    config = replace(config, size=32, phases=(), loop=replace(config.loop, steps=2, batch=2))
    T = preset.sampler.schedule.T
    loader = CropLoader(pool, no_conditions(pool, preset), preset.labels, config, T=T)
    run = Run(out=tmp_path / "run", compute=Compute("fp32"))
    fit(SamplerTask(preset, config, loader, run, UNet(preset.sampler.unet)), config.loop, run)


def test_base_has_the_papers_numbers() -> None:
    base = load_config("base")
    one, two = base.stage1.joint, base.stage2.loop
    assert (one.rate, one.batch, base.stage1.alpha) == (3e-5, 256, 0.5)
    assert (two.rate, two.batch, two.steps, two.betas) == (1e-4, 48, 150_000, (0.9, 0.99))
    assert base.stage2.size == 256 and base.stage2.objective == "ml" and base.pretrain is None


def test_phases_follow_each_other() -> None:
    changes = ["stage2.phases=[{begin=5, size=64, batch=3}, {begin=8, size=96, batch=2}]"]
    stage2 = load_config("tiny", changes).stage2
    first = (stage2.loop.batch, stage2.size)
    assert [stage2.crops(step) for step in (0, 4, 5, 7, 8, 100)] == [
        first, first, (3, 64), (3, 64), (2, 96), (2, 96),
    ]  # fmt: skip


def test_values_can_be_changed() -> None:
    changes = ["stage2.loop.steps=7", "stage2.mix.noisy=1", "preset=base", "stage2.objective=ml"]
    config = load_config("tiny", changes)
    assert config.stage2.loop.steps == 7 and config.stage2.mix["noisy"] == 1.0
    assert config.preset == "base" and config.stage2.objective == "ml"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stage2.loop.stepz=7", "stage2.loop: unknown keys ['stepz']"),
        ("stage2.loop.steps=many", "stage2.loop.steps: 'many' is not a valid int"),
        ("stage2.loop.batch=0", "batch must be at least 1, not 0"),
        ("stage2.loop.rate=0.0", "rate above 0"),
        ("stage2.mix.foggy=1", "unknown labels: ['foggy']"),
        ("stage2.mix={}", "mix must give labels a share"),
        ("stage2.objective=x1", "stage2.objective: 'x1' is not a valid"),
        ("stage2.phases=[{begin=9, size=1, batch=1}, {begin=2, size=1, batch=1}]", "[9, 2]"),
        ("stage2.steps", "is no KEY=VALUE"),
        ("preset.x=1", "'preset', which is no table"),
    ],
)
def test_a_fault_is_named(change: str, said: str) -> None:
    with pytest.raises(VlmirError) as caught:
        load_config("tiny", [change])
    assert said in str(caught.value)


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("preset = ")
    with pytest.raises(OptionError, match="is no TOML"):
        load_config(tmp_path / "broken.toml")
    with pytest.raises(
        OptionError, match=r"No config 'medium': give one of \('tiny', 'base', 'daclip'\)"
    ):
        load_config("medium")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(BundleError, match=r"missing \['preset', 'stage1', 'stage2'\]"):
        load_config(tmp_path / "empty.toml")
