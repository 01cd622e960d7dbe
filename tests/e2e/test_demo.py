"""``make demo`` with the shipped weights: a real server, a real photo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vlmir.bundle import load_bundle
from vlmir.config import load_preset
from vlmir.image import decode

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "vlmir/assets/tiny"


def test_the_demo_restores_every_damage_it_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.restorer.demo", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "report.json").read_text("utf-8"))
    gains = {r["damage"]: r["psnr_after"] - r["psnr_before"] for r in results}
    assert len(gains) >= 3 and min(gains.values()) > 0
    assert gains["noisy"] >= 8
    for damage in gains:
        for picture in ("degraded", "restored", "side-by-side"):
            assert decode((tmp_path / f"{damage}-{picture}.png").read_bytes()).height == 512


def test_the_shipped_weights_are_small_and_can_be_read() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6


def test_the_shipped_weights_are_those_described() -> None:
    bundle = load_bundle("tiny")
    assert bundle.preset == load_preset("tiny")
    for file in (ROOT / "README.md", ASSETS / "MODEL_CARD.md"):
        assert f"`{bundle.release}`, measured on {bundle.metrics['machine']}" in file.read_text(
            "utf-8"
        )
