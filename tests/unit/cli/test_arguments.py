"""The parser: what it refuses, and that its lists agree with the library's."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from vlmir import __version__, degradations, diffusion
from vlmir.cli import arguments, main


def test_choices_are_those_of_the_library() -> None:
    assert arguments.LABELS == degradations.LABELS
    assert set(arguments.SOLVERS) == set(diffusion.SOLVERS)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], "COMMAND"),
        (["polish"], "invalid choice"),
        (["restore", "a.png"], "-o/--output"),
        (["restore", "-o", "out"], "IN"),
        (["restore", "a.png", "-o", "out", "--steps", "0"], "at least 1, not '0'"),
        (["restore", "a.png", "-o", "out", "--steps", "2.5"], "at least 1, not '2.5'"),
        (["restore", "a.png", "-o", "out", "--seed=-1"], "at least 0, not '-1'"),
        (["restore", "a.png", "-o", "out", "--tile=x"], "at least 0, not 'x'"),
        (["restore", "a.png", "-o", "out", "--realism", "1.5"], "from 0 to 1, not '1.5'"),
        (["restore", "a.png", "-o", "out", "--strength", "nan"], "from 0 to 1, not 'nan'"),
        (["restore", "a.png", "-o", "out", "--strength", "half"], "from 0 to 1, not 'half'"),
        (["restore", "a.png", "-o", "out", "--quality", "101"], "from 1 to 100, not '101'"),
        (["restore", "a.png", "-o", "out", "--quality=9", "--lossless"], "not allowed with"),
        (["restore", "a.png", "-o", "out", "--caption=x", "--no-caption"], "not allowed with"),
        (["restore", "a.png", "-o", "out", "--solver", "euler"], "invalid choice: 'euler'"),
        (["restore", "a.png", "-o", "out", "--degradation", "old"], "invalid choice: 'old'"),
        (["restore", "a.png", "-o", "out", "--format", "gif"], "invalid choice: 'gif'"),
        (["restore", "a.png", "-o", "out", "--over"], "unrecognized arguments: --over"),
        (["inspect"], "IN"),
        (["degrade", "a.png", "-o", "out"], "--label"),
        (["degrade", "a.png", "-o", "out", "--label", "old"], "invalid choice: 'old'"),
        (["models"], "COMMAND"),
        (["models", "polish"], "invalid choice"),
        (["models", "import-daclip", "out"], "--unet, --clip"),
        (["models", "import-daclip", "--unet", "a", "--clip", "b"], "OUT"),
    ],
)
def test_a_usage_error_exits_2(
    given: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(given)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["restore", "inspect", "degrade"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert "IN [IN ...]" in capsys.readouterr().out


def test_version_is_quick() -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "vlmir", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"vlmir {__version__}"
    assert time.perf_counter() - start < 1.5  # 0.1 s on an idle machine
