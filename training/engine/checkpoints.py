"""Checkpoints of a training loop: written whole or not at all, the last few kept, nothing unpickled on reading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["Checkpoints", "latest_of_each", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, nested containers) so that a crash leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state that :func:`save_checkpoint` wrote, or None where there is no file. Nothing is unpickled."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Checkpoints:
    """The checkpoints of one loop: ``<folder>/step-00000250.pt`` and so on."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """``keep`` is how many are kept, at least 1."""
        self.folder = folder
        self._keep = keep

    @property
    def files(self) -> list[Path]:
        """All of them, the latest last."""
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` steps and drop the oldest; returns its file."""
        path = self.folder / f"step-{step:08d}.pt"
        save_checkpoint(path, {"step": step, **state})
        for old in self.files[: -self._keep]:
            old.unlink()
        return path

    def latest(self) -> dict[str, Any] | None:
        """The latest state, with its ``step``; None where there is none."""
        files = self.files
        return load_checkpoint(files[-1]) if files else None

    def require(self, made_by: str) -> dict[str, Any]:
        """The latest state.

        Raises:
            FileNotFoundError: There is none; the message names what makes it.
        """
        state = self.latest()
        if state is None:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint: run {made_by} first.")
        return state


def latest_of_each(out: Path) -> dict[str, Path]:
    """Name → latest checkpoint of every loop that has left one in a stage's folder."""
    folders = sorted({file.parent for file in out.glob("*/step-*.pt")})
    return {folder.name: Checkpoints(folder).files[-1] for folder in folders}
