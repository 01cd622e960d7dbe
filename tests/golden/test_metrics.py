"""The fidelity metrics against numbers of the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vlmir.metrics import fidelity


def _pair() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The pair of the recipe in the golden file, which is in BGR, as RGB."""
    y, x = np.mgrid[:48, :64]
    reference = np.stack([4 * x % 256, 5 * y % 256, 2 * (x + y) % 256], axis=-1)
    noise = ((7 * x + 13 * y) % 11 - 5)[..., None] * np.array([1, 2, 1])
    restored = np.clip(reference + noise, 0, 255)
    return restored[..., ::-1].astype(np.uint8), reference[..., ::-1].astype(np.uint8)


@pytest.mark.parametrize("crop", [0, 4])
def test_reference_numbers(golden_numbers: Path, crop: int) -> None:
    golden = json.loads((golden_numbers / "metrics.json").read_text())[f"crop{crop}"]
    restored, reference = _pair()
    found = fidelity(restored, reference, crop=crop)
    for name, value in golden.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-10), name
