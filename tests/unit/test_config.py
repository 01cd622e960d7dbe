"""Presets: strict loading, and every shipped file builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmir.config import PRESETS, Preset, UNetConfig, from_dict, load_preset
from vlmir.degradations import LABELS
from vlmir.errors import BundleError
from vlmir.nn import UNet


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_survives_json(name: str) -> None:
    preset = load_preset(name)
    assert preset.labels == (LABELS if name != "daclip" else LABELS[:-1])
    assert from_dict(Preset, json.loads(json.dumps(preset.to_dict()))) == preset


def test_daclip_is_base_without_what_its_weights_lack() -> None:
    expected = load_preset("base").to_dict()
    expected |= {"name": "daclip", "labels": LABELS[:-1]}
    expected["embedder"]["tokenizer"] = "open_clip"
    expected["sampler"]["unet"]["semantic"] = False
    assert load_preset("daclip").to_dict() == expected


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_network(name: str) -> None:
    config = load_preset(name).sampler.unet
    assert sum(p.numel() for p in UNet(config).parameters()) > 1_000_000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "unknown keys .*colour"),
        ({"width": "wide"}, "width: 'wide'"),
        ({"attention": ["linear", "quadratic"]}, "quadratic"),
        ({"semantic": 1}, "semantic"),
        ({"multipliers": [1]}, "same number of levels"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, object], named: str) -> None:
    data = {
        "width": 32,
        "multipliers": [1, 2],
        "attention": ["none", "linear"],
        "context_dim": 8,
        "semantic": True,
    }
    with pytest.raises(BundleError, match=named):
        from_dict(UNetConfig, data | change)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(BundleError, match=r"missing .*width"):
        from_dict(UNetConfig, {})


def test_unknown_preset_and_bad_json(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="huge"):
        load_preset("huge")
    file = tmp_path / "broken.json"
    file.write_text("{")
    with pytest.raises(BundleError, match="no JSON"):
        load_preset(file)
