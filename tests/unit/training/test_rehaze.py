"""Other haze over a real pair: the pair's own haze is found again, and another is what the scattering model says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.pictures import scene
from training.data.rehaze import airlight, other_hazes, rehaze


def hazy_pair(A: float, density: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A scene, and the same in haze that thickens to the right."""
    clean = scene(3, 120, 160)
    t = np.linspace(0.9, 0.4, 160, dtype=np.float32)[None, :, None] ** density
    hazy = clean / np.float32(255) * t + A * (1 - t)
    return np.rint(hazy * 255).astype(np.uint8), clean


@pytest.mark.parametrize("A", [0.8, 0.9, 1.0])
def test_the_airlight_is_found(A: float) -> None:
    assert airlight(*hazy_pair(A)) == pytest.approx(A, abs=0.021)


def test_the_same_density_gives_the_pair_again() -> None:
    hazy, clean = hazy_pair(0.9)
    again = rehaze(hazy, clean, 0.9, density=1.0, new_A=0.9)
    assert np.abs(again.astype(int) - hazy).mean() < 1


@pytest.mark.parametrize(("density", "new_A"), [(0.6, 0.9), (1.6, 0.9), (1.3, 1.0)])
def test_another_haze_is_the_models(density: float, new_A: float) -> None:
    hazy, clean = hazy_pair(0.9)
    other = rehaze(hazy, clean, 0.9, density=density, new_A=new_A)
    expected, _ = hazy_pair(new_A, density)
    assert np.abs(other.astype(int) - expected).mean() < 2
    assert other.shape == hazy.shape and other.dtype == np.uint8


def test_other_hazes_differ_and_thicken_with_the_pairs_own_depth() -> None:
    hazy, clean = hazy_pair(0.9)
    others = list(other_hazes(hazy, clean, 6, np.random.default_rng(0)))
    assert len({other.tobytes() for other in others}) == 6
    for other in others:
        error = np.abs(other.astype(int) - clean).mean(axis=(0, 2))
        assert error[-40:].mean() > error[:40].mean()
