"""Views and judgement: the embedder's work without its network, as a remote caller and a service do it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vlmir.config import load_preset
from vlmir.vlm.embedder import CERTAIN, ViewMaker, is_certain, judge, with_mirrors

PRESET = load_preset("tiny")
MAKER = ViewMaker.of(PRESET.embedder)
LABELS = ("noisy", "hazy")
PROTOTYPES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.mark.parametrize("size", [(50, 70), (1, 1), (2, 300)])
def test_views_are_the_whole_and_its_corners(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).random((*size, 3), np.float32)
    views = MAKER(picture)
    assert views.shape == MAKER.shape == (5, 6, 160, 160)
    for view, part in zip(views, [picture, *MAKER.windows(picture)], strict=True):
        assert torch.equal(view, MAKER.view(part)[0])


def test_a_maker_without_windows_and_detail() -> None:
    plain = dataclasses.replace(MAKER, window=None, detail=False, resize="crop")
    picture = np.random.default_rng(0).random((50, 70, 3), np.float32)
    assert plain(picture).shape == plain.shape == (1, 3, 160, 160)
    squashed = dataclasses.replace(plain, resize="squash")
    assert not torch.equal(plain(picture), squashed(picture))


def test_mirror_images_follow_unless_there_is_the_whole_alone() -> None:
    views = torch.rand(5, 6, 8, 8)
    mirrored = with_mirrors(views)
    assert torch.equal(mirrored[:5], views)
    assert torch.equal(mirrored[5:].flip(-1), views)
    assert torch.equal(with_mirrors(views[:1]), views[:1])


def test_the_mean_of_the_views_decides() -> None:
    f_I, f_D = torch.rand(3), torch.rand(3)
    agreed = judge(
        f_I, f_D, torch.tensor([[2.0, 0.0], [1.0, 0.0]]), PROTOTYPES, LABELS, typical=False
    )
    assert agreed.degradation == "noisy"
    assert agreed.degradations["noisy"] == pytest.approx(float(torch.sigmoid(torch.tensor(1.5))))
    assert torch.equal(agreed.f_D, f_D) and torch.equal(agreed.f_I, f_I)
    overruled = judge(
        f_I, f_D, torch.tensor([[2.0, 0.0], [0.0, 4.0]]), PROTOTYPES, LABELS, typical=False
    )
    assert overruled.degradation == "hazy"
    assert torch.equal(overruled.f_D, PROTOTYPES[1])


@pytest.mark.parametrize("probability", [0.5, 0.94, 0.96, 1.0])
def test_a_label_that_is_as_good_as_sure_needs_no_vote(probability: float) -> None:
    others = torch.tensor([0.7, 0.3]) * (1 - probability)
    logits = torch.cat([others, torch.tensor([probability])]).log() + 3
    assert is_certain(logits) == (probability >= CERTAIN)


def test_the_labels_typical_damage_takes_the_place_of_the_pictures_own() -> None:
    f_I, f_D, logits = torch.rand(3), torch.rand(3), torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    seen = judge(f_I, f_D, logits, PROTOTYPES, LABELS, typical=True)
    assert torch.equal(seen.f_D, PROTOTYPES[0]) and seen.degradation == "noisy"
