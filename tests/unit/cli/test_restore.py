"""``vlmir restore`` and ``vlmir inspect`` with a restorer that has no networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeRestorer, write_picture
from vlmir.cli import main
from vlmir.errors import BundleError
from vlmir.image import Limits, decode


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_file(
    restorer: FakeRestorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_picture(tmp_path / "in.png", "png")
    assert main(["restore", str(source), "-o", str(tmp_path / "out.webp"), "--lossless"]) == 0
    restored = decode((tmp_path / "out.webp").read_bytes())
    assert restored.format == "webp"
    assert restored.pixels == pytest.approx(0.75, abs=1 / 255)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[1/1]" in captured.err
    assert "1 done, 0 failed, 0 skipped" in captured.err


def test_options_reach_the_restorer(restorer: FakeRestorer, tmp_path: Path) -> None:
    source = write_picture(tmp_path / "in.png", "png")
    options = "--steps 4 --solver ddim --seed 7 --realism 0.5 --strength 0.25 --tile 256 --ensemble"
    texts = ["--caption", "a cat", "--degradation", "noisy", "--quality", "80"]
    output = ["-o", str(tmp_path / "out.jpg"), "--bundle", "mine"]
    assert main(["restore", str(source), *output, *options.split(), *texts]) == 0
    assert restorer.bundles == ["mine"]
    ((path, chosen),) = restorer.calls
    assert path == source
    assert (chosen.steps, chosen.solver, chosen.seed, chosen.tile) == (4, "ddim", 7, 256)
    assert (chosen.realism, chosen.strength, chosen.quality) == (0.5, 0.25, 80)
    assert chosen.ensemble
    assert (chosen.caption, chosen.use_caption, chosen.degradation) == ("a cat", True, "noisy")
    assert (chosen.format, chosen.lossless) == ("jpeg", False)


def test_no_caption(restorer: FakeRestorer, tmp_path: Path) -> None:
    source = write_picture(tmp_path / "in.png", "png")
    assert main(["restore", str(source), "-o", str(tmp_path / "out"), "--no-caption"]) == 0
    assert restorer.calls[0][1].use_caption is False


def test_a_bad_file_does_not_stop_the_others(
    restorer: FakeRestorer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = tmp_path / "out", tmp_path / "logs" / "report.jsonl"
    command = ["restore", str(photos), "-o", str(output), "--json", "--report", str(report)]
    assert main(command) == 1
    captured = capsys.readouterr()
    told = {Path(line["input"]).name: line for line in lines(captured.out)}
    assert {name: line["status"] for name, line in told.items()} == {
        "a.png": "done",
        "broken.jpg": "failed",
        "b.jpg": "done",
        "c.TIF": "done",
    }
    assert told["a.png"]["report"] == {"caption": "a cat", "seed": 0}
    assert told["a.png"]["seconds"] >= 0
    assert told["broken.jpg"]["error"]
    assert report.read_text() == captured.out
    assert "3 done, 1 failed" in captured.err
    assert restorer.closed == 4
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*"))
    assert written == ["a.png", "sub/b.jpg", "sub/deep/c.TIF"]


def test_the_same_command_resumes(
    restorer: FakeRestorer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["restore", str(photos), "-o", str(tmp_path / "out"), "--json"]
    assert main(command) == 1
    capsys.readouterr()
    write_picture(photos / "broken.jpg", "jpeg")
    assert main(command) == 0
    assert [line["status"] for line in lines(capsys.readouterr().out)].count("skipped") == 3
    assert [path.name for path, _ in restorer.calls[4:]] == ["broken.jpg"]


def test_nothing_is_loaded_where_all_is_done(
    restorer: FakeRestorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_picture(tmp_path / "in.png", "png")
    target = write_picture(tmp_path / "out.png", "png")
    before = target.read_bytes()
    command = ["restore", str(source), "-o", str(target)]
    assert main(command) == 0
    assert (restorer.bundles, target.read_bytes()) == ([], before)
    assert "0 done, 0 failed, 1 skipped (already there" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert target.read_bytes() != before


def test_an_unexpected_error_is_one_picture_s_failure(
    restorer: FakeRestorer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(path: Path) -> None:
        if path.name == "a.png":
            raise RuntimeError("out of\nmemory")

    restorer.before = crash
    assert main(["restore", str(photos), "-o", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "RuntimeError: out of memory" in captured.err
    assert "2 done, 2 failed" in captured.err


def test_ctrl_c_exits_130_and_keeps_what_is_done(
    restorer: FakeRestorer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(path: Path) -> None:
        if path.name == "b.jpg":
            raise KeyboardInterrupt

    restorer.before = interrupt
    output = tmp_path / "out"
    assert main(["restore", str(photos), "-o", str(output)]) == 130
    assert [path.name for path in output.iterdir()] == ["a.png"]
    assert "same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.png", "-o", "out"], "no file or folder none.png"),
        (["{photos}", "-o", "{photos}"], "is an input, too"),
        (["{photos}", "-o", "{photos}/out", "--lossless"], "cannot be lossless"),
        (["{photos}", "-o", "{photos}/out", "--report", "{photos}"], "Cannot write the report"),
    ],
)
def test_a_mistaken_command_exits_2_before_anything_is_loaded(
    arguments: list[str],
    complaint: str,
    restorer: FakeRestorer,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["restore", *(text.format(photos=photos) for text in arguments)]) == 2
    assert complaint in capsys.readouterr().err
    assert restorer.bundles == []


def test_a_missing_bundle_exits_1(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(bundle: str, limits: object, **compute: str) -> None:
        raise BundleError(f"There is no bundle {bundle}.")

    monkeypatch.setattr("vlmir.cli.commands.load_restorer", load)
    assert main(["restore", str(photos), "-o", str(tmp_path / "out"), "--bundle", "b"]) == 1
    assert "vlmir restore: error: There is no bundle b." in capsys.readouterr().err
    assert main(["inspect", str(photos), "--bundle", "b"]) == 1


def test_inspect(restorer: FakeRestorer, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(photos / "a.png"), str(photos / "sub")]) == 0
    printed = capsys.readouterr().out
    assert f"{photos / 'a.png'} (4×3)\n  caption:     a cat\n" in printed
    assert printed.count("degradation: noisy 90%, hazy 10%") == 3


def test_inspect_without_a_captioner(
    restorer: FakeRestorer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restorer.caption = None
    assert main(["inspect", str(photos / "a.png")]) == 0
    assert "  caption:     (these weights give none)\n" in capsys.readouterr().out
    assert main(["inspect", str(photos / "a.png"), "--json"]) == 0
    assert lines(capsys.readouterr().out)[0]["caption"] is None


def test_inspect_as_json(
    restorer: FakeRestorer, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(photos), "--json"]) == 1
    captured = capsys.readouterr()
    told = {Path(line["input"]).name: line for line in lines(captured.out)}
    assert told["a.png"]["degradations"] == {"noisy": 0.9, "hazy": 0.099}
    assert told["broken.jpg"]["error"] == "This is no image."
    assert "This is no image." in captured.err


def test_limits_can_be_raised_and_lowered(
    photos: Path, tmp_path: Path, restorer: FakeRestorer
) -> None:
    out = str(tmp_path / "out")
    assert main(["restore", str(photos / "a.png"), "-o", out, "--max-pixels", "50000000"]) == 0
    assert main(["inspect", str(photos / "a.png"), "--max-bytes", "7"]) == 0
    assert restorer.limits == [Limits(max_pixels=50_000_000), Limits(max_bytes=7)]


def test_degrade_keeps_the_limits(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    arguments = ["degrade", str(photos / "a.png"), "-o", out, "--label", "noisy"]
    assert main([*arguments, "--max-pixels", "11"]) == 1
    assert "at most 11 are taken" in capsys.readouterr().err


def test_too_many_steps_are_refused_before_any_picture(
    photos: Path, tmp_path: Path, restorer: FakeRestorer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["restore", str(photos), "-o", str(out), "--steps", "101"]) == 2
    assert "at most 100" in capsys.readouterr().err
    assert restorer.calls == [] and not out.exists()
