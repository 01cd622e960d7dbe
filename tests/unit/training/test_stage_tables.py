"""What the stages cost, as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from training import table


def log(folder: Path, *reports: dict[str, object]) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(report) + "\n" for report in reports)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_each_loop_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = log(
        tmp_path / "a",
        {"stage": "stem", "step": 50, "steps_per_s": 0.5, "waiting": 0.1},
        {"stage": "stem", "step": 60, "psnr/noisy": 20.0},
        {"stage": "stem", "step": 100, "steps_per_s": 2.0, "waiting": 0.01},
        {"stage": "stem", "step": 150, "steps_per_s": 2.5, "waiting": 0.01},
        {"stage": "stem", "step": 150, "peak_memory_mib": 2048.0},
        {"stage": "embedder", "step": 10, "steps_per_s": 4.0, "waiting": 0.0},
    )
    results = tmp_path / "RESULTS.md"
    results.write_text("before\n<!-- stages -->\n<!-- /stages -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table", "--stages", str(first), "--tables", str(results)])
    table.main()
    lines = results.read_text("utf-8").splitlines()
    assert "| stem | 150 | 2.00 | 1 % | 2.0 GiB |" in lines
    assert "| embedder | 10 | 4.00 | 0 % | – |" in lines
    assert (lines[0], lines[-1]) == ("before", "after")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--stages", "."], "name the folders of stages that ran"), ([], "name the JSON")],
)
def test_a_fault_of_the_user_is_told_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["table", *arguments])
    with pytest.raises(SystemExit) as stopped:
        table.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
