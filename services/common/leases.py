"""What answers a request: a model, and which release it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Held"]

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Held(Generic[M]):
    """A model in memory, and what it is."""

    model: M
    release: str
    """Name and version of the weights."""
    digests: dict[str, str]
    """Part → sha256."""
    labels: tuple[str, ...]
    """Degradation labels, in the order of the weights."""
