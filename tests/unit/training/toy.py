"""A task as small as can be, with all that a real one has: batches, dropout, a moving average."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.config import LoopConfig
from training.engine.compute import Compute
from training.engine.loop import Run, Task, fit
from training.engine.workers import ALONE, Workers
from training.stage2 import Ema

__all__ = ["ToyTask", "toy_config", "train_toy"]


def toy_config(**changes: Any) -> LoopConfig:
    """Twelve steps, each reported."""
    return LoopConfig(
        **{"steps": 12, "batch": 4, "rate": 1e-2, "log_every": 1, "save_every": 5} | changes
    )


class ToyTask(Task):
    """Learns to double numbers, through a layer with dropout if any."""

    name = "toy"

    def __init__(
        self,
        run: Run,
        batch: int = 4,
        dropout: float = 0.3,
        after_step: Callable[[int], None] | None = None,
        data: str = "a",
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.data = data
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 3))
        self.ema = Ema(self.net, 0.9)
        self._run, self._batch, self._after_step = run, batch, after_step
        self.drawn: list[Tensor] = []

    @property
    def model(self) -> nn.Module:
        return self.net

    def draw(self, step: int) -> Tensor:
        whole = torch.randn(self._batch, 3, generator=torch.Generator().manual_seed(step))
        part = whole[list(self._run.workers.share(self._batch))]
        self.drawn.append(part)
        return part

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.net(x) - 2 * x).square().mean()}

    def after_step(self, step: int) -> None:
        self.ema.update(step)
        if self._after_step is not None:
            self._after_step(step)

    def extra_state(self) -> dict[str, Any]:
        return {"ema": self.ema.average}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.ema.average = state["ema"]


def train_toy(
    out: Path,
    *,
    resume: bool = False,
    workers: Workers = ALONE,
    dropout: float = 0.3,
    after_step: Callable[[int], None] | None = None,
    seed: int = 0,
    data: str = "a",
    **changes: Any,
) -> ToyTask:
    """Train it in this process."""
    compute = Compute("fp32", torch.device("cpu"))
    run = Run(out=out, resume=resume, seed=seed, compute=compute, workers=workers)
    config = toy_config(**changes)
    task = ToyTask(run, config.batch, dropout, after_step, data)
    fit(task, config, run)
    return task


if __name__ == "__main__":  # a process to be killed: toy.py OUT STEPS [--resume]
    torch.set_num_threads(1)
    train_toy(
        Path(sys.argv[1]), resume="--resume" in sys.argv, steps=int(sys.argv[2]), save_every=7
    )
