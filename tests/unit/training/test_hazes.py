"""Fresh haze for each crop: what is drawn stays a pair that the scattering model can explain."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.pictures import scene
from training.data.hazes import Hazes
from training.data.pool import Bytes, Pool, build_pool

SIZE = 48
WINDOW = np.s_[10 : 10 + SIZE, 20 : 20 + SIZE]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Two photos, and two scenes with haze that thickens to the right."""
    t = np.linspace(0.9, 0.4, 96, dtype=np.float32)[None, :, None]
    clean = [scene(seed) for seed in (5, 6)]
    hazy = [np.rint(gt * t + 255 * 0.85 * (1 - t)).astype(np.uint8) for gt in clean]
    pairs = [("hazy", lq, gt) for lq, gt in zip(hazy, clean, strict=True)]
    return build_pool(tmp_path_factory.mktemp("hazes") / "pool", [scene(0), scene(1)], pairs)


def drawn(pool: Pool, *, real: bool, count: int = 40) -> list[tuple[Bytes, Bytes, Bytes, Bytes]]:
    """The window of one hazy entry, LQ and GT, before and after, many times."""
    hazy = [i for i in pool.training if pool.entries[i].label == "hazy"]
    hazes = Hazes(pool, [i for i in hazy if pool.is_real(pool.entries[i])])
    i = next(i for i in hazy if pool.is_real(pool.entries[i]) == real)
    lq, gt = pool.lq(i)[WINDOW], pool.gt(i)[WINDOW]
    rng = np.random.default_rng(0)
    return [(lq, gt, *hazes.draw(i, lq, gt, rng)) for _ in range(count)]


def test_real_pairs_come_in_other_hazes_and_other_colours(pool: Pool) -> None:
    found = drawn(pool, real=True)
    assert len({hazy.tobytes() for _, _, hazy, _ in found}) > 15
    assert any(np.array_equal(lq, hazy) for lq, _, hazy, _ in found)  # some stay as they are
    kept = [np.array_equal(gt, clean) for _, gt, _, clean in found]
    assert any(kept) and not all(kept)


def test_photos_stay_what_they_are_under_the_haze_of_real_scenes(pool: Pool) -> None:
    found = drawn(pool, real=False)
    assert all(np.array_equal(gt, clean) for _, gt, _, clean in found)
    as_before = sum(np.array_equal(lq, hazy) for lq, _, hazy, _ in found)
    assert 0 < as_before < len(found)


@pytest.mark.parametrize("real", [True, False])
def test_what_is_drawn_is_haze(pool: Pool, real: bool) -> None:
    """Haze moves every value towards one airlight: contrast falls, and nothing gets darker than it was but there."""
    for lq, _, hazy, clean in drawn(pool, real=real):
        if np.array_equal(lq, hazy):
            continue
        assert hazy.shape == clean.shape == (SIZE, SIZE, 3) and hazy.dtype == np.uint8
        assert hazy.std() < clean.std()
        dark = clean < 0.65 * 255
        assert (hazy.astype(int) >= clean.astype(int) - 1)[dark].all()


def test_the_same_seed_draws_the_same(pool: Pool) -> None:
    first, again = drawn(pool, real=True, count=5), drawn(pool, real=True, count=5)
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
