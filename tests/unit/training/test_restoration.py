"""Restoring and judging the pictures of a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training.pictures import scene
from training.measure.benches import noisy_copy
from training.measure.restoration import SETTINGS, Judges, measure_bench
from vlmir.errors import BundleError
from vlmir.metrics import fidelity
from vlmir.nn import UNet
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

PAIRS = [(noisy_copy(scene(i), i), scene(i)) for i in range(2)]
SAMPLE = RestoreOptions(realism=1.0, steps=2)


@pytest.fixture(scope="module")
def restorer(small_bundle_folder: Path) -> Restorer:
    return Restorer.load(small_bundle_folder)


def measured(restorer: Restorer, options: RestoreOptions, **more: Any) -> dict[str, Any]:
    return measure_bench(restorer, PAIRS, options, Judges(), title="test", **more)


def test_numbers_are_means_of_what_each_picture_got(restorer: Restorer) -> None:
    found = measured(restorer, SETTINGS["one-step"])
    for i, (lq, gt) in enumerate(PAIRS):
        levels = np.rint(restorer.restore(lq).image.pixels * 255).astype(np.uint8)
        expected = fidelity(levels, gt)
        for name in ("psnr", "ssim", "psnr_y", "ssim_y"):
            assert found["per_picture"][name][i] == pytest.approx(getattr(expected, name))
    assert found["psnr"] == pytest.approx(np.mean(found["per_picture"]["psnr"]))
    low, high = found["ci95"]["psnr"]
    assert low <= found["psnr"] <= high and found["pictures"] == 2
    assert found["lpips"] is None and found["fid"] is None


def test_a_picture_without_error_counts_100_db(restorer: Restorer) -> None:
    untouched = RestoreOptions(strength=0.0)
    pairs = [(gt, gt) for _, gt in PAIRS]
    found = measure_bench(restorer, pairs, untouched, Judges(), title="test")
    assert found["psnr"] == found["input_psnr"] == found["psnr_y"] == 100


def test_a_sample_is_drawn_with_each_seed(restorer: Restorer) -> None:
    alone, three = measured(restorer, SAMPLE), measured(restorer, SAMPLE, seeds=3)
    assert alone["seeds"] == 1 and three["seeds"] == 3
    assert three["psnr_by_seed"][0] == pytest.approx(alone["psnr"])
    assert len(set(three["psnr_by_seed"])) == 3
    assert three["psnr"] == pytest.approx(np.mean(three["psnr_by_seed"]))
    assert measured(restorer, SETTINGS["one-step"], seeds=3)["seeds"] == 1


def test_inputs_tell_other_pictures_apart(restorer: Restorer) -> None:
    same = measured(restorer, SETTINGS["one-step"])["inputs"]
    assert measured(restorer, SETTINGS["ensemble"])["inputs"] == same
    other = measure_bench(restorer, PAIRS[:1], RestoreOptions(), Judges(), title="test")["inputs"]
    assert other != same


def test_floats_reach_the_network_unrounded_and_within_range(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    forward = UNet.forward

    def spy(self: UNet, x: torch.Tensor, mu: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(mu)
        return forward(self, x, mu, *rest)

    monkeypatch.setattr(UNet, "forward", spy)
    gt = scene(0)
    noise = np.random.default_rng(0).normal(0, 50, gt.shape)
    lq = ((gt + noise) / 255).astype(np.float32)
    options = RestoreOptions(degradation="noisy")
    found = measure_bench(restorer, [(lq, gt)], options, Judges(), title="test")
    (mu,) = seen
    assert np.array_equal(mu[0].permute(1, 2, 0).numpy(), np.clip(lq, 0, 1)) and lq.min() < -0.1
    assert found["input_psnr"] == pytest.approx(14.15, abs=0.2)


def test_perceptual_numbers_are_there_where_their_networks_are(restorer: Restorer) -> None:
    class Mean:
        """In the place of the networks."""

        def __call__(self, picture: np.ndarray, reference: np.ndarray | None = None) -> Any:
            mean = picture.reshape(-1, 3).mean(0)
            return mean if reference is None else float(np.abs(mean - reference.mean()).sum())

    judges = Judges(lpips=Mean(), inception=Mean())  # type: ignore[arg-type]
    found = measure_bench(restorer, PAIRS, SAMPLE, judges, title="test", seeds=2)
    assert found["lpips"] == pytest.approx(np.mean(found["per_picture"]["lpips"]))
    assert found["fid"] > 0 and len(found["ci95"]["lpips"]) == 2
    alone = measure_bench(restorer, PAIRS[:1], RestoreOptions(), judges, title="test")
    assert alone["fid"] is None and alone["lpips"] > 0


def test_judges_without_files_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert Judges.find(None, None) == Judges(lpips=None, inception=None)
    with pytest.raises(BundleError, match=r"missing\.pth"):
        Judges.find(tmp_path / "missing.pth", None)
