"""Synthetic degradations of clean photos: one seeded operator per label, and mixtures of them."""

from __future__ import annotations

from vlmir.degradations.recipes import LABELS, degrade, mixture
from vlmir.degradations.sensor import gaussian_noise

__all__ = ["LABELS", "degrade", "gaussian_noise", "mixture"]
