from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import structural_similarity

from vlmir.errors import InputError
from vlmir.metrics import fidelity, psnr, psnr_y, ssim, ssim_y


def _random(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_equal_pictures() -> None:
    picture = _random(30, 40)
    found = fidelity(picture, picture)
    assert found.psnr == found.psnr_y == math.inf
    assert found.ssim == pytest.approx(1) and found.ssim_y == pytest.approx(1)


def test_known_error_gives_known_psnr() -> None:
    reference = np.full((20, 20, 3), 100, np.uint8)
    assert psnr(reference + np.uint8(5), reference) == pytest.approx(20 * math.log10(255 / 5))
    luma_error = 5 * 219 / 255
    found = psnr_y(reference + np.uint8(5), reference)
    assert found == pytest.approx(20 * math.log10(255 / luma_error))


def test_border_is_left_out() -> None:
    reference = _random(20, 20)
    restored = reference.copy()
    restored[:4], restored[:, -4:] = 0, 255
    assert psnr(restored, reference, crop=4) == math.inf
    assert psnr(restored, reference, crop=3) < 40


def test_floats_equal_uint8() -> None:
    restored, reference = _random(24, 25), _random(24, 25, seed=1)
    for metric in (psnr, ssim, psnr_y, ssim_y):
        floats = metric(restored / 255, reference / 255)
        assert floats == pytest.approx(metric(restored, reference), rel=1e-12)


def test_ssim_agrees_with_scikit_image() -> None:
    reference = _random(40, 50)
    restored = np.clip(reference * 0.8 + 10, 0, 255).astype(np.uint8)
    maps = structural_similarity(
        restored,
        reference,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )[1]
    assert ssim(restored, reference, crop=0) == pytest.approx(maps[5:-5, 5:-5].mean(), abs=1e-9)


@pytest.mark.parametrize(
    ("restored", "reference", "message"),
    [
        (_random(20, 20), _random(20, 21), "one size"),
        (_random(20, 20)[..., 0], _random(20, 20)[..., 0], "H×W×3"),
        (_random(18, 40), _random(18, 40), "too small"),
        (_random(20, 20).astype(int), _random(20, 20).astype(int), "uint8"),
    ],
)
def test_bad_pairs_are_refused(
    restored: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fidelity(restored, reference)


def test_fast_enough_for_benchmarks() -> None:
    restored, reference = _random(321, 481), _random(321, 481, seed=1)
    start = time.process_time()
    fidelity(restored, reference)
    assert time.process_time() - start < 1
