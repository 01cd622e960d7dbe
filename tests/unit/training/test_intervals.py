"""Means over pictures and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest

from training.measure.intervals import interval, summary


def test_interval_is_that_of_the_normal_approximation_and_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(30, 2, 400).tolist()
    low, high = interval(values)
    error = 1.96 * np.std(values) / np.sqrt(len(values))
    assert (low, high) == pytest.approx(
        (np.mean(values) - error, np.mean(values) + error), abs=0.05
    )
    assert interval(values) == (low, high)


def test_interval_of_one_picture_is_a_point() -> None:
    assert interval([3.5]) == (3.5, 3.5)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [interval(rng.normal(0, 1, 60).tolist()) for _ in range(200)]
    assert 0.89 < np.mean([low < 0 < high for low, high in intervals]) < 0.99


def test_summary_keeps_every_picture() -> None:
    found = summary({"psnr": [20.0, 30.0], "ssim": [0.5, 0.7]})
    assert found["psnr"] == 25 and found["ssim"] == pytest.approx(0.6) and found["pictures"] == 2
    assert found["per_picture"] == {"psnr": [20.0, 30.0], "ssim": [0.5, 0.7]}
    assert found["ci95"]["psnr"] == [20.0, 30.0]
