"""``vlmir models import-daclip``: help, exit status, and what is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.foreign import daclip_files, small_daclip
from vlmir.bundle import load_bundle
from vlmir.cli import main

IMPORT = ["models", "import-daclip"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The arguments that name two small checkpoints."""
    unet, clip = daclip_files(tmp_path, small_daclip())
    return ["--unet", str(unet), "--clip", str(clip)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmir.cli.models.load_preset", lambda name: small_daclip())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["models"], "import-daclip"),
        (IMPORT, "universal-ir.pth"),
        (IMPORT, "daclip_ViT-B-32.pt"),
        (IMPORT, "weblzw/daclip-uir-ViT-B-32-irsde"),
    ],
)
def test_help(command: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    assert told in capsys.readouterr().out


def test_it_says_what_it_made(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "bundle"
    assert main([*IMPORT, *files, str(out)]) == 0
    bundle, captured = load_bundle(out), capsys.readouterr()
    first, embedder, sampler, labels = captured.out.splitlines()
    assert first == f"{out} (daclip-universal-ir)"
    for part, line in (("embedder", embedder), ("sampler", sampler)):
        assert line.split()[0] == f"{part}:" and line.endswith(f"sha256 {bundle.digests[part]}")
        assert int(line.split()[1].replace(",", "")) > 100_000
    assert labels.startswith("  labels:   motion-blurry, ") and labels.endswith(", uncompleted")
    assert captured.err == ""


def test_a_foreign_file_exits_1_with_one_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exchanged = ["--unet", files[3], "--clip", files[1]]
    assert main([*IMPORT, *exchanged, str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(
        f"vlmir models import-daclip: error: {files[3]} is DA-CLIP's CLIP"
    )
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mistake", ["missing", "taken"])
def test_a_mistaken_path_exits_2_before_anything_heavy(
    mistake: str, files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if mistake == "missing":
        Path(files[1]).unlink()
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    code = (
        "import sys; from vlmir.cli import main; status = main(sys.argv[1:]); "
        "print('torch' in sys.modules); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *IMPORT, *files, str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert ("There is no file" if mistake == "missing" else "already there") in done.stderr
