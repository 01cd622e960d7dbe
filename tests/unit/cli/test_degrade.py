"""``vlmir degrade``: the real operators on a small picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.cli.conftest import write_picture
from vlmir.cli import main
from vlmir.degradations import degrade, mixture
from vlmir.image import decode


def test_a_degraded_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_picture(tmp_path / "in.png", "png", level=0.5)
    target = tmp_path / "out.png"
    chosen = ["--label", "noisy", "--strength", "0.75", "--seed", "3"]
    assert main(["degrade", str(source), "-o", str(target), *chosen, "--json"]) == 0
    expected = degrade(decode(source.read_bytes()).pixels, "noisy", seed=3, strength=0.75)
    np.testing.assert_allclose(decode(target.read_bytes()).pixels, expected, atol=1e-6)
    report = json.loads(capsys.readouterr().out)["report"]
    assert report == {"labels": ["noisy"], "strength": 0.75, "seed": 3}


def test_several_labels_make_a_mixture(tmp_path: Path) -> None:
    source = write_picture(tmp_path / "in.png", "png", level=0.5)
    target = tmp_path / "out.png"
    labels = ["--label", "noisy", "--label", "low-light"]
    assert main(["degrade", str(source), "-o", str(target), *labels]) == 0
    expected = mixture(decode(source.read_bytes()).pixels, ["low-light", "noisy"], seed=0)
    np.testing.assert_allclose(decode(target.read_bytes()).pixels, expected, atol=1e-6)


def test_a_label_given_twice_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_picture(tmp_path / "in.png", "png")
    labels = ["--label", "noisy", "--label", "noisy"]
    assert main(["degrade", str(source), "-o", str(tmp_path / "out"), *labels]) == 2
    assert "given twice" in capsys.readouterr().err


def test_a_folder_is_degraded_without_networks(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["degrade", str(photos), "-o", str(tmp_path / "out"), "--label", "hazy"]
    assert main(command) == 1
    assert "3 done, 1 failed" in capsys.readouterr().err
