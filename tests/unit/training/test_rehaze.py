"""Other haze over a real pair: the pair's own haze is found again, and another is what the scattering model says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.pictures import scene
from training.data.rehaze import (
    airlight,
    fitted,
    haze_over,
    other_hazes,
    repainted,
    transmission,
)


def hazy_pair(A: float, density: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A scene, and the same in haze that thickens to the right."""
    clean = scene(3, 120, 160)
    t = np.linspace(0.9, 0.4, 160, dtype=np.float32)[None, :, None] ** density
    hazy = clean / np.float32(255) * t + A * (1 - t)
    return np.rint(hazy * 255).astype(np.uint8), clean


@pytest.mark.parametrize("A", [0.8, 0.9, 1.0])
def test_the_airlight_is_found(A: float) -> None:
    assert airlight(*hazy_pair(A)) == pytest.approx(A, abs=0.021)


def test_the_pairs_own_haze_gives_the_pair_again() -> None:
    hazy, clean = hazy_pair(0.9)
    again = haze_over(clean, transmission(hazy, clean, 0.9), 0.9)
    assert np.abs(again.astype(int) - hazy).mean() < 1


@pytest.mark.parametrize(("density", "A"), [(0.6, 0.9), (1.6, 0.9), (1.3, 1.0)])
def test_another_haze_is_the_models(density: float, A: float) -> None:
    hazy, clean = hazy_pair(0.9)
    other = haze_over(clean, transmission(hazy, clean, 0.9) ** density, A)
    expected, _ = hazy_pair(A, density)
    assert np.abs(other.astype(int) - expected).mean() < 2
    assert other.shape == hazy.shape and other.dtype == np.uint8


def test_other_hazes_differ_and_thicken_with_the_pairs_own_depth() -> None:
    hazy, clean = hazy_pair(0.9)
    others = list(other_hazes(hazy, clean, 6, np.random.default_rng(0)))
    assert len({other.tobytes() for other in others}) == 6
    for other in others:
        error = np.abs(other.astype(int) - clean).mean(axis=(0, 2))
        assert error[-40:].mean() > error[:40].mean()


def test_a_foreign_haze_follows_the_edges_of_the_scene() -> None:
    """Where a smooth haze lies over a scene of two halves, the step between them is the haze's, too."""
    scene_of_two = np.full((120, 160, 3), 60, np.uint8)
    scene_of_two[:, 83:] = 190
    t = np.tile(np.linspace(0.9, 0.4, 160, dtype=np.float32), (120, 1))
    bent = fitted(t, scene_of_two)
    assert np.abs(bent - t).mean() < 0.05
    at_the_edge, elsewhere = bent[:, 82] - bent[:, 83], bent[:, 40] - bent[:, 41]
    assert at_the_edge.mean() > 10 * elsewhere.mean() > 0


def test_a_repainted_scene_is_the_same_scene() -> None:
    clean = scene(3, 120, 160)
    others = [repainted(clean, np.random.default_rng(seed)) for seed in range(6)]
    assert len({other.tobytes() for other in others}) == 6
    for other in others:
        assert other.shape == clean.shape and other.dtype == np.uint8
        assert np.corrcoef(other.mean(-1).ravel(), clean.mean(-1).ravel())[0, 1] > 0.8
