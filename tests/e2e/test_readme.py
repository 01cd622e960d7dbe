"""The README's commands and snippets, as they stand there, with the shipped weights."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from services.restorer.demo import embedded_server
from vlmir.cli import main
from vlmir.cli.arguments import build_parser
from vlmir.image import Image, decode, encode

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The arguments of each line that runs ``.venv/bin/<program>``."""
    lines = [
        shlex.split(line, comments=True) for block in blocks("sh") for line in block.split("\n")
    ]
    return [line[1:] for line in lines if line and line[0] == f".venv/bin/{program}"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the photos the README speaks of; the current one."""
    monkeypatch.chdir(tmp_path)
    levels = np.ascontiguousarray(astronaut()[40:136, 160:280])
    noisy = levels + np.random.default_rng(0).normal(0, 50, levels.shape)
    data = encode(Image.from_levels(np.clip(noisy, 0, 255).astype(np.uint8)), format="jpeg")
    (tmp_path / "holiday").mkdir()
    for name in ("photo.jpg", "holiday/one.jpg", "holiday/two.jpg"):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_every_command_does_what_it_says(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [line for line in commands("vlmir") if line[0] == "models"]
    for line in models:  # the public files are not here; tests/unit/test_importer.py has such files
        assert build_parser().parse_args(line).command == "models import-daclip"
    shown = [line for line in commands("vlmir") if line not in models]
    assert {line[0] for line in shown} == {"restore", "inspect", "degrade"}
    for line in shown:
        assert main(line) == 0, line
    written = {path.name: decode(path.read_bytes()) for path in photos.glob("*.*")}
    assert {"restored.jpg", "best.jpg", "sample.png", "bad.png"} <= set(written)
    assert all(picture.pixels.shape == (96, 120, 3) for picture in written.values())
    assert len(list((photos / "restored").iterdir())) == 2
    out = capsys.readouterr().out.splitlines()
    reports = [json.loads(line) for line in out if line.startswith("{")]
    assert [report["status"] for report in reports] == ["done", "done"]
    (judged,) = [line for line in out if line.startswith("  degradation:")]
    assert judged.split()[1] == "noisy"
    difference = written["restored.jpg"].pixels - written["photo.jpg"].pixels
    assert np.abs(difference).mean() > 0.05


def test_the_librarys_snippet_runs(photos: Path) -> None:
    snippet = next(block for block in blocks("python") if "Restorer.load" in block)
    done = run(snippet, photos)
    assert "'degradation': 'noisy'" in done
    assert decode((photos / "restored.jpg").read_bytes()).format == "jpeg"


def test_the_clients_snippet_runs(photos: Path) -> None:
    assert ["-m", "services.restorer.embedded", "--port", "50051"] in commands("python")
    snippet = next(block for block in blocks("python") if "RestorationClient" in block)
    with embedded_server("tiny") as address:
        run(snippet.replace("localhost:50051", address), photos)
    assert decode((photos / "restored.jpg").read_bytes()).format == "jpeg"


def run(snippet: str, folder: Path) -> str:
    """Output of a snippet in a Python process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
