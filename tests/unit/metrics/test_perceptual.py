"""LPIPS and FID with random networks: nothing is downloaded, nothing unpickled, and the numbers behave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlmir.errors import BundleError, InputError
from vlmir.metrics import perceptual
from vlmir.metrics.perceptual import ALEXNET, InceptionFeatures, Lpips, cached, frechet_distance


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


def noisy(clean: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any try to download fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's convolutions with random weights, under torchvision's names."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    features = alexnet(weights=None).features.state_dict()
    file = tmp_path_factory.mktemp("alexnet") / ALEXNET
    torch.save({f"features.{name}": tensor for name, tensor in features.items()}, file)
    return file


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's Inception with random weights."""
    from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # It cannot be built without weights: give it none, and take those it starts with.
        patch.setattr(
            feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {}
        )
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), file)
    return file


def test_lpips_is_zero_for_equal_pictures_and_grows_with_damage(alexnet: Path) -> None:
    lpips, clean = Lpips(alexnet), picture(0)
    distances = [lpips(noisy(clean, sigma), clean) for sigma in (0, 10, 40, 90)]
    assert distances[0] == 0 and distances == sorted(distances) and distances[-1] > 0.01


def test_lpips_is_that_of_the_library(alexnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as library
    from torchvision.models import alexnet as build

    network = build(weights=None)
    network.load_state_dict(torch.load(alexnet, weights_only=True), strict=False)
    monkeypatch.setattr(library, "_get_tv_model_features", lambda *_: network.features)
    planes = [
        torch.from_numpy(p.transpose(2, 0, 1)[None] / np.float32(255))
        for p in (picture(0), picture(1))
    ]
    expected = library.learned_perceptual_image_patch_similarity(*planes, normalize=True)
    assert Lpips(alexnet)(picture(0), picture(1)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [(picture(0, 48, 56), "one size"), (picture(0)[:16], "one size")],
)
def test_pairs_that_do_not_fit_are_refused(alexnet: Path, other: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Lpips(alexnet)(picture(0), other)


def test_pictures_that_are_too_small_or_floats_are_refused(alexnet: Path) -> None:
    small, floats = picture(0)[:24], picture(0) / 255
    for wrong in (small, floats):
        with pytest.raises(InputError, match="at least 31 pixels"):
            Lpips(alexnet)(wrong, wrong)


@pytest.mark.parametrize("judge", [Lpips, InceptionFeatures])
def test_a_wrong_file_gives_one_clear_error(judge: type, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(BundleError, match=r"weights\.pth cannot be read: No such file"):
        judge(file)
    file.write_bytes(b"not weights")
    with pytest.raises(BundleError, match="no file of PyTorch tensors"):
        judge(file)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(BundleError, match="named PyTorch tensors"):
        judge(file)
    torch.save({"features.0.weight": torch.zeros(1), "fc.weight": torch.zeros(2)}, file)
    with pytest.raises(BundleError, match="does not hold"):
        judge(file)


class Trap:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped"),)


@pytest.mark.parametrize("judge", [Lpips, InceptionFeatures])
def test_nothing_is_unpickled(judge: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(BundleError, match="no file of PyTorch tensors"):
        judge(tmp_path / "weights.pth")
    assert not (tmp_path / "trapped").exists()


def test_the_cache_is_pytorchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert cached(ALEXNET) is None
    file = tmp_path / "hub" / "checkpoints" / ALEXNET
    file.parent.mkdir(parents=True)
    file.touch()
    assert cached(ALEXNET) == file


def test_fid_of_a_set_with_itself_is_zero_and_grows_with_damage(inception: Path) -> None:
    features = InceptionFeatures(inception)
    clean = [picture(seed) for seed in range(3)]
    sets = [np.stack([features(noisy(one, sigma)) for one in clean]) for sigma in (0.0, 10.0, 60.0)]
    assert sets[0].shape == (3, 2048)
    # Random features are tiny: taken relative to how they spread.
    spread = ((sets[0] - sets[0].mean(0)) ** 2).sum()
    same, little, much = (frechet_distance(one, sets[0]) / spread for one in sets)
    assert abs(same) < 1e-6 and same < little < much


def test_frechet_distance_is_that_of_the_library() -> None:
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (40, 6)), rng.normal(0.3, 2, (50, 6))
    moments = [
        torch.from_numpy(m) for f in (first, second) for m in (f.mean(0), np.cov(f, rowvar=False))
    ]
    expected = float(_compute_fid(*moments))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_one_picture_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        frechet_distance(np.zeros((1, 4)), np.zeros((3, 4)))


def test_importing_the_module_loads_no_library() -> None:
    import subprocess
    import sys

    code = f"import sys, {perceptual.__name__}; print({{'torchmetrics', 'torch_fidelity'}} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
