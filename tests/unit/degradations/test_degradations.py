"""What every operator promises, and what each one is known for."""

from __future__ import annotations

import time
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from vlmir.degradations import LABELS, degrade, gaussian_noise, mixture
from vlmir.errors import InputError, OptionError

DAMAGES = tuple(label for label in LABELS if label != "clean")


def coffee(*, width: int, height: int) -> NDArray[np.float32]:
    levels = data.coffee()  # type: ignore[no-untyped-call]
    scaled = cv2.resize(levels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(scaled / np.float32(255.0), dtype=np.float32)


@pytest.fixture(scope="module")
def photo() -> NDArray[np.float32]:
    return coffee(width=300, height=200)


def psnr(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    error = float(np.mean((first - second) ** 2))
    return -10.0 * float(np.log10(max(error, 1e-12)))


def test_labels_follow_the_reference_order() -> None:
    assert LABELS == (
        "motion-blurry",
        "hazy",
        "jpeg-compressed",
        "low-light",
        "noisy",
        "raindrop",
        "rainy",
        "shadowed",
        "snowy",
        "uncompleted",
        "clean",
    )


@pytest.mark.parametrize("label", LABELS)
def test_result_is_an_8_bit_picture_of_the_same_shape(
    label: str, photo: NDArray[np.float32]
) -> None:
    before = photo.copy()
    result = degrade(photo, label, seed=1)
    assert result.dtype == np.float32
    assert result.shape == photo.shape
    assert result.min() >= 0.0
    assert result.max() <= 1.0
    np.testing.assert_allclose(result * 255.0, np.rint(result * 255.0), atol=1e-4)
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize("label", LABELS)
def test_same_seed_same_pixels_whatever_the_global_state(
    label: str, photo: NDArray[np.float32]
) -> None:
    first = degrade(photo, label, seed=7)
    np.random.seed(3)  # the operators must not look at it
    np.testing.assert_array_equal(first, degrade(photo, label, seed=7))


@pytest.mark.parametrize("label", [label for label in DAMAGES if label != "jpeg-compressed"])
def test_another_seed_gives_another_picture(label: str, photo: NDArray[np.float32]) -> None:
    assert not np.array_equal(degrade(photo, label, seed=1), degrade(photo, label, seed=2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("label", DAMAGES)
def test_more_strength_is_more_damage(label: str, seed: int, photo: NDArray[np.float32]) -> None:
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    fidelity = [psnr(degrade(photo, label, seed=seed, strength=s), photo) for s in strengths]
    assert fidelity[0] < 40.0, "the mildest case must be visible"
    assert all(mild > severe for mild, severe in pairwise(fidelity))


def test_clean_only_rounds(photo: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(degrade(photo, "clean", seed=0, strength=1.0), photo)
    between = np.full((2, 2, 3), 0.5, dtype=np.float32)
    np.testing.assert_allclose(degrade(between, "clean", seed=0), 128.0 / 255.0)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (128, 128)])
def test_any_size(label: str, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 0.4, dtype=np.float32)
    assert degrade(pixels, label, seed=0, strength=1.0).shape == pixels.shape


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_missing_parts_stand_out_from_flat_pictures(value: float) -> None:
    pixels = np.full((60, 90, 3), value, dtype=np.float32)
    changed = np.abs(degrade(pixels, "uncompleted", seed=0) - pixels).max(axis=-1) > 0.1
    assert 0.15 < changed.mean() < 0.35


@pytest.mark.parametrize("label", DAMAGES)
def test_fast_enough_for_a_training_loop(label: str) -> None:
    pixels = coffee(width=481, height=321)
    durations = []
    for seed in range(3):
        start = time.perf_counter()
        degrade(pixels, label, seed=seed)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.2  # about 5 times what it takes on an idle core


def test_noise_has_the_stated_deviation() -> None:
    grey = np.full((200, 200, 3), 0.5, dtype=np.float32)
    for strength, sigma in ((0.0, 15.0), (0.2, 29.0)):
        noise = degrade(grey, "noisy", seed=0, strength=strength) - grey
        assert float(noise.std()) * 255.0 == pytest.approx(sigma, rel=0.02)
    rng = np.random.default_rng(0)
    assert float(gaussian_noise(grey, 10.0, rng).std()) * 255.0 == pytest.approx(10.0, rel=0.02)


def test_haze_pulls_black_and_white_to_one_air_light() -> None:
    seed, size = 5, (40, 60, 3)
    black = degrade(np.zeros(size, dtype=np.float32), "hazy", seed=seed)
    white = degrade(np.ones(size, dtype=np.float32), "hazy", seed=seed)
    transmission = white - black  # J·t + A·(1 - t) at J = 1, less the same at J = 0
    air = black / (1.0 - transmission)
    assert transmission.min() > 0.0
    assert transmission.max() < 1.0
    assert float(air.std(axis=(0, 1)).max()) < 0.02
    assert 0.68 < float(air.mean()) < 1.0


def test_motion_blur_and_rain_keep_a_flat_picture_flat_or_brighter() -> None:
    flat = np.full((80, 120, 3), 0.3, dtype=np.float32)
    np.testing.assert_allclose(degrade(flat, "motion-blurry", seed=0), flat, atol=1.5 / 255.0)
    assert (degrade(flat, "rainy", seed=0) >= flat - 1.0 / 255.0).all()


def test_shadow_only_darkens_and_shade_is_bluish() -> None:
    flat = np.full((80, 120, 3), 0.6, dtype=np.float32)
    shaded = degrade(flat, "shadowed", seed=0)
    assert (shaded <= flat + 1.0 / 255.0).all()
    red, _, blue = shaded.reshape(-1, 3).mean(axis=0)
    assert blue > red


def test_a_shadow_falls_where_it_can_be_seen() -> None:
    """A label without a damage would teach the controller to see shadows in clean pictures."""
    half_dark = np.full((80, 120, 3), 0.02, dtype=np.float32)
    half_dark[:, 60:] = 0.8
    for seed in range(12):
        shaded = degrade(half_dark, "shadowed", seed=seed)
        assert float((half_dark - shaded).max(axis=2)[:, 60:].mean()) > 0.02, seed


def test_drops_hide_what_is_behind_them_with_pale_discs() -> None:
    rng = np.random.default_rng(0)
    texture = rng.random((160, 240, 3), dtype=np.float32)
    for seed in range(6):
        covered = []
        for strength in (0.2, 1.0):
            wet = degrade(texture, "raindrop", seed=seed, strength=strength)
            covered.append(float(np.abs(wet - texture).mean()))
        assert covered[1] > covered[0] > 0.005, seed


def test_weather_looks_alike_at_any_size() -> None:
    for label in ("rainy", "snowy", "raindrop"):
        changed = []
        for scale in (1, 4):
            flat = np.full((160 * scale, 240 * scale, 3), 0.2, dtype=np.float32)
            changed.append(float(np.mean(degrade(flat, label, seed=2) - flat)))
        assert changed[0] == pytest.approx(changed[1], rel=0.3, abs=0.01)


def test_mixture_of_one_is_that_one(photo: NDArray[np.float32]) -> None:
    for label in LABELS:
        np.testing.assert_array_equal(
            mixture(photo, [label], seed=4), degrade(photo, label, seed=4)
        )


def test_mixture_follows_the_way_of_the_light(photo: NDArray[np.float32]) -> None:
    hazy = degrade(photo, "hazy", seed=4)
    expected = degrade(hazy, "noisy", seed=4)
    np.testing.assert_array_equal(mixture(photo, ["noisy", "hazy"], seed=4), expected)


def test_unknown_label_lists_the_known(photo: NDArray[np.float32]) -> None:
    with pytest.raises(OptionError, match=r"foggy.*motion-blurry.*clean"):
        degrade(photo, "foggy", seed=0)


@pytest.mark.parametrize("labels", [[], ["hazy", "hazy"]])
def test_mixture_wants_different_labels(labels: list[str], photo: NDArray[np.float32]) -> None:
    with pytest.raises(OptionError):
        mixture(photo, labels, seed=0)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_outside_its_range(strength: float, photo: NDArray[np.float32]) -> None:
    with pytest.raises(OptionError, match="strength"):
        degrade(photo, "hazy", seed=0, strength=strength)


def test_negative_seed(photo: NDArray[np.float32]) -> None:
    with pytest.raises(OptionError, match="seed"):
        degrade(photo, "hazy", seed=-1)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), dtype=np.float32),
        np.zeros((4, 4, 4), dtype=np.float32),
        np.zeros((0, 4, 3), dtype=np.float32),
        np.zeros((4, 4, 3), dtype=np.float64),
        np.zeros((4, 4, 3), dtype=np.uint8),
        np.full((4, 4, 3), 2.0, dtype=np.float32),
        np.full((4, 4, 3), np.nan, dtype=np.float32),
        [[0.0]],
    ],
)
def test_pixels_of_the_wrong_kind(pixels: NDArray[np.float32]) -> None:
    with pytest.raises(InputError):
        degrade(pixels, "hazy", seed=0)
