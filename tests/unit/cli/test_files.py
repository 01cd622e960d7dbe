"""Which file becomes which, and writing whole files or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmir.cli.files import find_images, plan_jobs, write_atomically
from vlmir.errors import OptionError


def plan(*inputs: Path, output: Path, **chosen: object) -> dict[str, str]:
    """Output by input, both by their path below the output's parent."""
    root = output.parent
    jobs = plan_jobs(list(inputs), output, **chosen)  # type: ignore[arg-type]
    return {
        job.source.relative_to(root).as_posix(): job.target.relative_to(root).as_posix()
        for job in jobs
    }


def test_a_folder_keeps_its_subfolders(photos: Path, tmp_path: Path) -> None:
    assert plan(photos, output=tmp_path / "out") == {
        "photos/a.png": "out/a.png",
        "photos/broken.jpg": "out/broken.jpg",
        "photos/sub/b.jpg": "out/sub/b.jpg",
        "photos/sub/deep/c.TIF": "out/sub/deep/c.TIF",
    }


def test_a_format_changes_only_suffixes_that_say_another(photos: Path, tmp_path: Path) -> None:
    planned = plan(photos, output=tmp_path / "out", format="jpeg")
    assert set(planned.values()) == {
        "out/a.jpg",
        "out/broken.jpg",
        "out/sub/b.jpg",
        "out/sub/deep/c.jpg",
    }


def test_an_output_inside_the_input_is_not_searched(photos: Path) -> None:
    output = photos / "restored"
    write_atomically(output / "a.png", b"from an earlier run")
    found = [inner.as_posix() for _, inner in find_images([photos], leave_out=output)]
    assert found == ["a.png", "broken.jpg", "sub/b.jpg", "sub/deep/c.TIF"]


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("a.png", "b.JPG", ("b.JPG", "jpeg")),
        ("a.png", "folder", ("folder/a.png", "png")),
        ("a", "folder", ("folder/a.png", "png")),
        ("IMG.2024", "folder", ("folder/IMG.2024.png", "png")),
        ("a.heic", "b.tiff", ("b.tiff", "tiff")),
    ],
)
def test_one_file(name: str, target: str, expected: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / name).touch()
    (job,) = plan_jobs([tmp_path / name], tmp_path / target)
    assert (job.target.relative_to(tmp_path).as_posix(), job.format) == expected


def test_one_file_into_an_existing_folder_with_a_dot(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "out.png").mkdir()
    (job,) = plan_jobs([tmp_path / "a.png"], tmp_path / "out.png")
    assert job.target == tmp_path / "out.png" / "a.png"


@pytest.mark.parametrize(
    ("inputs", "output", "chosen", "complaint"),
    [
        (["none.png"], "out", {}, "no file or folder"),
        (["empty"], "out", {}, "No image in the folder"),
        (["a.png"], "a.png", {}, "is an input, too"),
        ([""], "", {}, "is an input, too"),
        (["a.png", "sub/a.png"], "out", {}, "would both become"),
        (["a.png", "a.webp"], "out", {"format": "tiff"}, "would both become"),
        (["a.png", "sub/b.jpg"], "taken.jpg", {}, "is a file"),
        (["a.png"], "b.gif", {}, ".gif is none of"),
        (["a.png"], "b.jpg", {"format": "webp"}, "--format webp contradicts"),
        (["a.png", "sub/b.jpg"], "out", {"lossless": True}, "cannot be lossless"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(
    inputs: list[str], output: str, chosen: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "a.webp", "taken.jpg", "sub/a.png", "sub/b.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(OptionError, match=complaint):
        plan_jobs([tmp_path / name for name in inputs], tmp_path / output, **chosen)  # type: ignore[arg-type]


def test_writing_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.png"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.png"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
