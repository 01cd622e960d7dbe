"""The benchmark pictures."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from tests.unit.training.pictures import scene
from training.measure.benches import BENCHES, MARGINS, SYNTHETIC, UNCLIPPED, jpeg_copy
from vlmir.metrics import psnr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "noisy_cbsd68" / "gt").mkdir(parents=True)
    for number in range(2):
        cv2.imwrite(str(folder / "noisy_cbsd68" / "gt" / f"{number}.png"), scene(number, 160, 160))
    return folder


def test_float_protocol_is_the_same_noise_neither_clipped_nor_rounded(folder: Path) -> None:
    for (file, gt), (unclipped, same) in zip(
        BENCHES["CBSD68 σ=50"](folder), UNCLIPPED["CBSD68 σ=50 float"](folder), strict=True
    ):
        assert np.array_equal(gt, same) and unclipped.dtype == np.float32
        assert unclipped.min() < 0 and unclipped.max() > 1
        assert np.array_equal(np.clip(np.round(unclipped * 255), 0, 255).astype(np.uint8), file)
        assert np.std(unclipped - gt / 255) * 255 == pytest.approx(50, rel=0.02)
        assert psnr(unclipped, gt) == pytest.approx(20 * np.log10(255 / 50), abs=0.1)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_sets_are_damaged_copies_and_the_same_each_time(folder: Path, name: str) -> None:
    pairs, again = list(SYNTHETIC[name](folder)), list(SYNTHETIC[name](folder))
    assert len(pairs) == 2
    for (lq, gt), (lq_again, _) in zip(pairs, again, strict=True):
        assert lq.dtype == np.uint8 and lq.shape == gt.shape
        assert np.array_equal(lq, lq_again) and 5 < psnr(lq, gt) < 45


def test_every_synthetic_set_has_a_margin_to_reach() -> None:
    assert MARGINS.keys() == SYNTHETIC.keys() and all(margin > 0 for margin in MARGINS.values())


def test_jpeg_has_exactly_quality_10(folder: Path) -> None:
    """Against another encoder of the same quality and subsampling."""
    ((_, gt),) = islice(SYNTHETIC["JPEG q10"](folder), 1)
    data = io.BytesIO()
    PIL.Image.fromarray(gt).save(data, "JPEG", quality=10, subsampling="4:2:0")
    expected = np.asarray(PIL.Image.open(data))
    assert psnr(jpeg_copy(gt), expected) > 40
