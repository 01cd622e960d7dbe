"""A working folder with everything that the stages' commands need, as small as it can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small import small_preset
from tests.unit.training.pictures import write_captioned, write_pairs, write_photos

__all__ = ["lay_out"]

CONFIG = """
preset = "small.json"
[pretrain.clip]
{loop}
[pretrain.blip]
{loop}
[stage1.stem]
{loop}
[stage1.joint]
{loop}
[stage2]
objective = "x0"
norm = "rms"
size = 32
at_T = 0.5
{stage2}
phases = [{{ begin = 1, size = 48, batch = 2 }}]
mix = {{ noisy = 1, rainy = 1, clean = 1 }}
[stage2.loop]
{loop}
validate_every = 2
"""


def lay_out(folder: Path, patch: pytest.MonkeyPatch, *, loop: str, stage2: str = "") -> Path:
    """Work in ``folder``: photos, pairs and captioned photos; returns the config, whose loops are all ``loop``."""
    for size in ("PER_LABEL", "DAMAGE_PER_LABEL", "DAMAGE_CAPTIONED"):
        patch.setattr(f"training.data.views.{size}", 2)
    patch.setattr("training.data.views.CAPTIONED", 4)
    patch.setattr("training.data.pool.HELD_OUT", 3)
    patch.chdir(folder)
    write_photos(folder / "photos", 3)
    write_pairs(folder / "pairs", "rainy", 1)
    write_captioned(folder / "captioned", 8)
    (folder / "small.json").write_text(json.dumps(small_preset().to_dict()))
    config = folder / "small.toml"
    config.write_text(CONFIG.format(loop=loop, stage2=stage2))
    return config
