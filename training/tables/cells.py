"""Pieces of Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Numbers", "decibels", "grid"]

Numbers = Mapping[str, Any]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; none where there are no rows."""
    if not rows:
        return []
    first, *rest = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [first, "|" + "---|" * len(header), *rest]


def decibels(numbers: Numbers) -> str:
    """PSNR, with half the width of its confidence interval where that was measured: ``26.47 ± 0.61``."""
    interval = numbers.get("ci95")
    if interval is None:
        return f"{numbers['psnr']:.2f}"
    low, high = interval["psnr"]
    return f"{numbers['psnr']:.2f} ± {(high - low) / 2:.2f}"
