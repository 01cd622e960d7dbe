"""Captions are made once for each content, and an interrupted run goes on."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from tests.unit.training.pictures import scene
from training.captions import main
from training.data.caption_cache import CaptionCache
from vlmir.bundle import load_bundle
from vlmir.parts import build_captioner
from vlmir.vlm.captioner import BlipCaptioner


@pytest.fixture
def captioner(small_bundle_folder: Path) -> BlipCaptioner:
    return build_captioner(load_bundle(small_bundle_folder))


def test_captions_are_kept_by_content(
    captioner: BlipCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.caption_cache.BATCH", 2)
    pictures = [partial(scene, i) for i in (0, 1, 2, 0)]
    first = CaptionCache(tmp_path, captioner)(pictures, "scenes")
    assert first[3] == first[0] and len(first) == 4
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 3
    asked = list[int]()
    caption = captioner.caption_batch
    monkeypatch.setattr(captioner, "caption_batch", lambda v: asked.append(len(v)) or caption(v))
    again = CaptionCache(tmp_path, captioner)
    assert again([*pictures[::-1], partial(scene, 5)], "scenes")[:4] == first[::-1]
    assert asked == [1]


def test_a_line_cut_by_a_crash_is_made_again(captioner: BlipCaptioner, tmp_path: Path) -> None:
    pictures = [partial(scene, i) for i in range(3)]
    first = CaptionCache(tmp_path, captioner)(pictures, "scenes")
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    file.write_text(whole[:-9])
    assert CaptionCache(tmp_path, captioner)(pictures, "scenes") == first
    assert file.read_text() == whole


def test_another_captioner_says_something_else(captioner: BlipCaptioner, tmp_path: Path) -> None:
    picture = [partial(scene, 0)]
    CaptionCache(tmp_path, captioner)(picture, "scenes")
    for parameter in captioner.model.parameters():
        parameter.data.mul_(1.5)
    CaptionCache(tmp_path, captioner)(picture, "scenes")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("option", ["--workers=2", "--seed=1", "--precision=fp32", "--resume"])
def test_options_that_would_do_nothing_are_refused(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["captions", option])
    with pytest.raises(SystemExit):
        main()
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err
