"""The river over small real parts, and over parts that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmir.errors import ImageError, LimitError, OptionError, UnavailableError
from vlmir.image import Image, Limits, decode, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer
from vlmir.report import Report


@pytest.fixture(scope="module")
def restorer(small_bundle_folder: Path) -> Restorer:
    return Restorer.load(small_bundle_folder)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def judged(restorer: Restorer, monkeypatch: pytest.MonkeyPatch, clean: float) -> None:
    """Make the embedder find the picture clean with this probability."""
    seen = restorer._embedder.embed_image(np.zeros((8, 8, 3), np.float32))
    others = {label: (1 - clean) / 10 for label in restorer.labels}
    judged = seen._replace(degradations=others | {"clean": clean})
    monkeypatch.setattr(restorer._embedder, "embed_image", lambda pixels: judged)


def test_floats_beyond_the_range_are_restored_as_if_clipped(
    restorer: Restorer, photo: np.ndarray
) -> None:
    beyond = photo.astype(np.float32) / 255 * 1.5 - 0.2
    options = RestoreOptions(degradation="noisy")
    given, clipped = (
        restorer.restore(Image(pixels=pixels), options)
        for pixels in (beyond, np.clip(beyond, 0, 1))
    )
    assert np.array_equal(given.image.pixels, clipped.image.pixels)
    left = restorer.restore(Image(pixels=beyond), RestoreOptions(strength=0))
    assert left.image.pixels.min() == 0 and left.image.pixels.max() == 1


def test_report_says_what_was_done(restorer: Restorer, photo: np.ndarray) -> None:
    options = RestoreOptions(
        seed=3, steps=4, solver="ddim", strength=0.5, degradation="noisy"
    )  # named: damage of wide areas takes an evaluation more
    result = restorer.restore(photo, options)
    report = result.report
    assert (report.steps, report.solver, report.seed, report.realism) == (4, "ddim", 3, 1.0)
    assert (report.width, report.height, report.tiles) == (60, 40, 1)
    assert report.release == "small-1" and set(report.digests) == {
        "captioner",
        "embedder",
        "sampler",
    }
    assert sum(report.degradations.values()) == pytest.approx(1, abs=1e-4)
    assert set(report.milliseconds) == {"decode", "caption", "embed", "sample"}
    assert isinstance(report, Report) and report.to_dict()["warnings"] == []


def test_the_picture_keeps_what_is_not_colour(restorer: Restorer) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 65536, (32, 48, 4), np.uint16)
    data = encode(Image.from_levels(levels), format="png")
    result = restorer.restore(data, RestoreOptions(degradation="noisy"))
    back = decode(result.encode())
    assert back.bit_depth == 16 and back.format == "png"
    assert back.alpha is not None
    assert np.array_equal(np.round(back.alpha * 65535).astype(np.uint16), levels[..., 3])
    assert not np.array_equal(back.pixels, decode(data).pixels)


def test_what_cannot_be_written_is_refused_before_the_work(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorer, "_caption", lambda *_: pytest.fail("work was begun"))
    transparent = Image.from_levels(np.zeros((8, 8, 4), np.uint8))
    for options in (RestoreOptions(format="jpeg"), RestoreOptions(format="bmp")):
        with pytest.raises(OptionError, match=r"(?i)jpeg"):
            restorer.restore(transparent, options)


def test_the_suffix_says_the_format(restorer: Restorer, photo: np.ndarray, tmp_path: Path) -> None:
    result = restorer.restore(photo)
    for name, kind in (("a.JPG", "jpeg"), ("b.tif", "tiff"), ("c.png", "png")):
        result.save(tmp_path / name)
        assert decode((tmp_path / name).read_bytes()).format == kind
    for name in ("d", "d.bmp"):
        with pytest.raises(OptionError, match=r"\.png"):
            result.save(tmp_path / name)
    named = restorer.restore(photo, RestoreOptions(format="webp"))
    with pytest.raises(OptionError, match="webp"):
        named.save(tmp_path / "e.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.JPG", "b.tif", "c.png"]


def test_damage_of_wide_areas_is_judged_at_half_the_size_too(
    restorer: Restorer, photo: np.ndarray
) -> None:
    evaluations = {
        label: restorer.restore(photo, RestoreOptions(degradation=label)).report.steps
        for label in ("hazy", "noisy")
    }
    assert evaluations == {"hazy": 2, "noisy": 1}


def test_steps_without_effect_are_said_to_be(restorer: Restorer, photo: np.ndarray) -> None:
    mean, between = (
        restorer.restore(photo, RestoreOptions(steps=4, realism=r, degradation="noisy")).report
        for r in (0.0, 0.5)
    )
    assert (mean.steps, between.steps) == (1, 4)
    assert "one evaluation gives the mean" in mean.warnings[0] and between.warnings == ()


def test_the_mean_of_a_network_that_predicts_noise_takes_more(
    imported_bundle_folder: Path, photo: np.ndarray
) -> None:
    restorer = Restorer.load(imported_bundle_folder)
    default, told = (
        restorer.restore(photo, RestoreOptions(steps=steps, realism=0.0)).report
        for steps in (None, 20)
    )
    assert (default.steps, told.steps) == (4, 4)
    assert not any("no effect" in warning for warning in default.warnings)
    assert any("4 evaluations give the mean" in warning for warning in told.warnings)


def test_limits_are_the_callers(small_bundle_folder: Path, photo: np.ndarray) -> None:
    data = encode(Image.from_levels(photo))
    strict = Restorer.load(small_bundle_folder, limits=Limits(max_pixels=100))
    with pytest.raises(LimitError, match="at most 100"):
        strict.restore(data)


def test_grey_stays_grey(restorer: Restorer) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    result = restorer.restore(levels, RestoreOptions(degradation="noisy"))
    assert result.image.grey and np.ptp(result.image.pixels, axis=2).max() == 0


def test_a_clean_picture_is_left_alone(
    restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(restorer, monkeypatch, clean=0.95)
    result = restorer.restore(photo)
    assert np.array_equal(result.image.pixels, (photo / 255).astype(np.float32))
    assert result.report.steps == 0 and "undamaged" in result.report.warnings[0]
    forced = restorer.restore(photo, RestoreOptions(degradation="noisy"))
    assert forced.report.steps == 1 and not np.array_equal(forced.image.pixels, result.image.pixels)


def test_in_doubt_part_of_the_correction_is_applied(
    restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(restorer, monkeypatch, clean=0.5)
    assert restorer.restore(photo).report.strength == pytest.approx(0.5)


def test_strength_scales_the_correction(restorer: Restorer, photo: np.ndarray) -> None:
    lq = (photo / 255).astype(np.float32)
    full, half, none = (
        restorer.restore(photo, RestoreOptions(degradation="hazy", strength=s)).image.pixels
        for s in (1.0, 0.5, 0.0)
    )
    assert np.array_equal(none, lq)
    assert np.abs((half - lq) - (full - lq) / 2).max() < 1e-5


def test_a_picture_called_clean_is_left_alone(restorer: Restorer, photo: np.ndarray) -> None:
    kept = restorer.restore(photo, RestoreOptions(degradation="clean"))
    assert np.array_equal(kept.image.pixels, (photo / 255).astype(np.float32))
    assert (kept.report.steps, kept.report.warnings) == (0, ())


def test_captions(restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    own = restorer.restore(photo, RestoreOptions(caption="a dog", degradation="noisy"))
    none = restorer.restore(photo, RestoreOptions(use_caption=False, degradation="noisy"))
    assert (own.report.caption, none.report.caption) == ("a dog", None)
    assert not np.array_equal(own.image.pixels, none.image.pixels)

    def down(pixels: Any) -> str:
        raise UnavailableError("the captioner does not answer")

    monkeypatch.setattr(restorer._captioner, "caption", down)
    without = restorer.restore(photo, RestoreOptions(degradation="noisy"))
    assert "does not answer" in without.report.warnings[0]
    assert (own.degraded, none.degraded, without.degraded) == (False, False, True)
    assert np.array_equal(without.image.pixels, none.image.pixels)


def test_without_a_captioner_the_users_caption_guides(
    restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RestoreOptions(caption="a dog", degradation="noisy")
    expected = restorer.restore(photo, options)
    monkeypatch.setattr(restorer, "_captioner", None)
    own = restorer.restore(photo, options)
    assert (own.report.caption, own.report.warnings) == ("a dog", ())
    assert np.array_equal(own.image.pixels, expected.image.pixels)
    none = restorer.restore(photo, RestoreOptions(degradation="noisy"))
    assert none.report.caption is None and "no captioner" in none.report.warnings[0]
    assert restorer.inspect(photo).caption is None


def test_progress_previews_and_cancel(restorer: Restorer, photo: np.ndarray) -> None:
    options = RestoreOptions(steps=5, degradation="noisy")
    stream = restorer.stream(photo, options, previews=True)
    first = next(stream)
    assert (first.step, first.steps) == (1, 5)
    assert first.preview is not None and first.preview.shape == photo.shape
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize(
    "options",
    [{"solver": "magic"}, {"degradation": "foggy"}, {"steps": 1000, "degradation": "noisy"}],
)
def test_impossible_options(restorer: Restorer, photo: np.ndarray, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        restorer.restore(photo, RestoreOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"seed": -1},
        {"realism": 1.5},
        {"strength": -0.1},
        {"tile": 10},
        {"quality": 0},
        {"caption": "a dog", "use_caption": False},
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        RestoreOptions(**options)


def test_bad_sources(restorer: Restorer, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png"):
        restorer.restore(tmp_path / "no.png")
    with pytest.raises(ImageError):
        restorer.restore(b"text")


def test_limits_hold(
    restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorer, "limits", Limits(max_pixels=100))
    with pytest.raises(LimitError):
        restorer.restore(encode(Image.from_levels(photo)))


def test_inspect(restorer: Restorer, photo: np.ndarray) -> None:
    seen = restorer.inspect(photo)
    assert (seen.width, seen.height) == (60, 40)
    assert seen.degradation == max(seen.degradations, key=seen.degradations.__getitem__)


def test_one_pixel(restorer: Restorer) -> None:
    pixel = np.full((1, 1, 3), 99, np.uint8)
    result = restorer.restore(pixel, RestoreOptions(degradation="noisy"))
    assert result.image.pixels.shape == (1, 1, 3)
