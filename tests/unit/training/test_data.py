"""What lies in a folder of ``--data`` is seen from its layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.pictures import write_captioned, write_pairs, write_photos
from training.data.folders import find_data
from vlmir.errors import OptionError


def test_folders_are_sorted_by_their_layout(tmp_path: Path) -> None:
    photos, pairs, captioned = (tmp_path / name for name in ("a", "b", "c"))
    write_photos(photos, 2)
    write_pairs(pairs, "hazy", 1)
    write_captioned(captioned, 4)
    found = find_data([captioned, pairs, photos])
    assert (found.photos, found.pairs, found.captioned) == ((photos,), (pairs,), (captioned,))
    assert found.one_captioned() == captioned
    pool = found.pool(tmp_path / "pool")
    assert sum(pool.is_real(entry) for entry in pool.entries) == 8


def test_a_benchmark_beside_the_photos_is_not_trained_on(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    write_pairs(tmp_path / "bench", "hazy", 1)
    with pytest.raises(OptionError, match="holds neither pictures, nor"):
        find_data([tmp_path])


def test_pairs_of_unknown_damage_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, "hazy_sots_indoor", 1)
    with pytest.raises(OptionError, match="pairs of hazy_sots_indoor; labels are motion-blurry"):
        find_data([tmp_path])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is no folder"):
        find_data([tmp_path / "nowhere"])
    with pytest.raises(OptionError, match="folder of clean photos"):
        find_data([]).pool(tmp_path / "pool")
    with pytest.raises(OptionError, match=r"captions\.json, split\.json"):
        find_data([]).one_captioned()
