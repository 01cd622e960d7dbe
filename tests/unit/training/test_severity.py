"""How much is wrong with a picture, and where f_D says it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tests.unit.training.pictures import scene
from training.data.pool import degrade_bytes
from training.data.severity import SEVERITIES, severity
from training.stage1 import unnamed_axes


def test_nothing_wrong_is_all_zeros() -> None:
    photo = scene(1)
    assert torch.equal(severity(photo, photo), torch.zeros(SEVERITIES))


def test_each_number_says_what_it_is_for() -> None:
    gt = np.full((40, 60, 3), 128, np.uint8)
    gt[:, ::2] = 100
    redder = gt.copy()
    redder[..., 0] += 51  # a fifth of the range too red
    np.testing.assert_allclose(severity(redder, gt)[:3], [-2, 0, 0], atol=1e-3)
    dark_above = gt.copy()
    dark_above[:20] -= 51
    said = severity(dark_above, gt)
    np.testing.assert_allclose(said[:4], [1, 1, 1, 2], atol=1e-3)
    flatter = (gt.astype(float) * 0.5 + 57).astype(np.uint8)
    assert 0.5 < float(severity(flatter, gt)[4]) < 0.75  # log 2, less for the level


def test_more_damage_is_said_to_be_more() -> None:
    gt = scene(2, 160, 240)
    for label in ("noisy", "hazy", "low-light", "snowy", "rainy"):
        amounts = [
            float(severity(degrade_bytes(gt, label, seed=3, strength=strength), gt)[-1])
            for strength in (0.1, 0.5, 1.0)
        ]
        assert amounts == sorted(amounts) and amounts[0] > 0.3, label


def test_what_f_D_says_beside_the_labels_moves_none_of_them() -> None:
    torch.manual_seed(0)
    labels = F.normalize(torch.randn(11, 32), dim=-1)
    axes = unnamed_axes(labels, SEVERITIES)
    np.testing.assert_allclose(axes @ axes.T, np.eye(SEVERITIES), atol=1e-6)
    np.testing.assert_allclose(axes @ labels.T, np.zeros((SEVERITIES, 11)), atol=1e-6)
