"""What every training loop shares: the learning-rate curve, checkpoints that resume, and a progress log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Log",
    "adamw",
    "cosine_rate",
    "load_checkpoint",
    "mixed_precision",
    "resume",
    "save_checkpoint",
    "save_progress",
]


def adamw(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    *,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), never fused.

    PyTorch 2.14's fused CPU kernel walks weight and gradient in memory order: a channels-last weight whose gradient is
    laid out otherwise gets the updates of other elements, and training crawls without an error.
    """
    return torch.optim.AdamW(
        parameters, lr=rate, betas=betas, weight_decay=weight_decay, fused=False
    )


def mixed_precision() -> torch.autocast:
    """bfloat16 autocast where the processor multiplies in it; float32 elsewhere.

    Emulated bfloat16 is no saving: a step of stage 2 took 18 s instead of 0.9 s on a processor with AVX2 alone.
    """
    able = torch.cpu.get_capabilities()
    bf16 = any(able.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def cosine_rate(step: int, *, total: int, warmup: int, peak: float, floor: float = 0.01) -> float:
    """Learning rate at ``step``: linear warm-up to ``peak``, then a half cosine down to ``floor * peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, nested containers) so that a crash leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state that :func:`save_checkpoint` wrote, or None where there is no file. Nothing is unpickled."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_progress(
    path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any
) -> None:
    """Save a loop's state after ``step`` steps, so that :func:`resume` goes on from there."""
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(path, state | more)


def resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Load what :func:`save_progress` wrote into model and optimizer.

    Returns:
        The steps done, and the whole state; 0 and nothing where there is no file.
    """
    state = load_checkpoint(path)
    if state is None:
        return 0, {}
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state


class Log:
    """Prints one line per report, with the time left, and appends it to ``metrics.jsonl``."""

    def __init__(self, folder: Path, name: str, total: int, *, start: int = 0) -> None:
        """``total`` steps are to be done, ``start`` of them are done already."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "metrics.jsonl"
        self._name, self._total, self._start = name, total, start
        self._began = time.monotonic()

    def __call__(self, step: int, **values: float) -> None:
        """Report ``values`` after ``step`` steps."""
        spent = time.monotonic() - self._began
        done = max(1, step - self._start)
        left = spent / done * (self._total - step)
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(
            f"{self._name} {step}/{self._total}  {text}  {spent:.0f} s, {left:.0f} s left",
            flush=True,
        )
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._name, "step": step, **values}) + "\n")
