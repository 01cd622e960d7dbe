"""Conditions withheld at inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.pictures import scene
from training.measure.ablation import ABLATED, VARIANTS, ablated_restorers
from training.measure.benches import BENCHES
from vlmir.bundle import load_bundle
from vlmir.nn import UNet
from vlmir.pipeline import Restorer

GIVEN = {
    "none": (False, False, True),
    "SCA": (True, False, True),
    "ICA": (False, True, True),
    "SCA&ICA": (True, True, True),
    "SCA&ICA, no f_D": (True, True, False),
    "This is a photo": (True, True, True),
}
"""Whether f_T, f_I and f_D are given."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_withheld_condition_is_the_learnt_null(
    name: str, small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    prepare = UNet.prepare

    def spy(self: UNet, *conditions: Any) -> Any:
        nulls = [self.null[key] for key in ("text", "image", "degradation")]
        pairs = zip(conditions, nulls, strict=False)
        seen.append(tuple(not torch.equal(f[0], null) for f, null in pairs))
        return prepare(self, *conditions)

    monkeypatch.setattr(UNet, "prepare", spy)
    restorer = ablated_restorers(load_bundle(small_bundle_folder))[name]
    result = restorer.restore(scene(0), VARIANTS[name].options)
    assert seen == [GIVEN[name]]
    assert (result.report.caption == "This is a photo") == (name == "This is a photo")


def test_the_full_model_is_the_default_one(small_bundle_folder: Path) -> None:
    ablated = ablated_restorers(load_bundle(small_bundle_folder))["SCA&ICA"]
    expected = Restorer.load(small_bundle_folder).restore(scene(0))
    found = ablated.restore(scene(0), VARIANTS["SCA&ICA"].options)
    assert (found.image.pixels == expected.image.pixels).all()


def test_ablated_benches_are_there() -> None:
    assert set(ABLATED) <= BENCHES.keys() and GIVEN.keys() == VARIANTS.keys()
