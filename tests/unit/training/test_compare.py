"""Objectives are trained alike, measured alike, and what is there is not made again."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest

from tests.small import small_preset
from tests.unit.training.pictures import scene
from training import compare

TWO = {
    "clean pictures": compare.Variant("x0", "rms", 0.5),
    "noise": compare.Variant("ml", "l1", 0.0),
}


def test_objectives_are_compared(
    data: Path, small_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), scene(i, 104, 120))
    report = tmp_path / "RESULTS.md"
    report.write_text("# Ours\n<!-- objectives -->\n<!-- /objectives -->\n")
    monkeypatch.setattr(compare, "VARIANTS", TWO)
    monkeypatch.setattr(compare, "load_preset", lambda name: small_preset())
    monkeypatch.chdir(tmp_path)
    command = ["x", "--data", "photos", "--bench", str(data / "bench"), "--into", str(report)]
    command += ["--stage1", str(small_bundle_folder), "--steps", "2", "--pictures", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--no-compile"])
    compare.main()
    said = report.read_text()
    rows = [line for line in said.splitlines() if line.startswith(("| clean pictures", "| noise"))]
    assert len(rows) == 2 and all(row.count("/") == 4 for row in rows)
    assert rows[0].split("|")[2] != rows[1].split("|")[2]
    monkeypatch.setattr(compare, "_train", lambda *_: pytest.fail("trained again"))
    compare.main()
    assert report.read_text() == said
