"""Reports of a training loop: a line with the time left, a JSON line, and the tracker."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.config import LoopConfig

if TYPE_CHECKING:
    from training.engine.loop import Run

__all__ = ["Log"]


class Log:
    """Collects what happens between two reports; the first worker writes them."""

    def __init__(self, run: Run, name: str, config: LoopConfig, start: int) -> None:
        """``start`` steps are done already."""
        self._run, self._name, self._total, self._start = run, name, config.steps, start
        self._began = self._last = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._steps, self._waiting, self._reported = 0, 0.0, start
        run.out.mkdir(parents=True, exist_ok=True)

    def add(self, losses: Mapping[str, Tensor], gradient: Tensor) -> None:
        """Take in one step's losses and the norm of its gradient."""
        for name, value in {**losses, "gradient": gradient}.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + value.detach().cpu()
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What was taken in since the last report: it belongs to a checkpoint between two reports."""
        return {"sums": dict(self._sums), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._sums, self._steps = dict(state["sums"]), state["steps"]

    def waited(self, seconds: float) -> None:
        """Take in how long the loop waited for a batch."""
        self._waiting += seconds

    def report(self, step: int) -> None:
        """Write the means since the last report, the speed, and the share of the time spent waiting for batches."""
        now = time.monotonic()
        means = {name: value.item() / self._steps for name, value in self._sums.items()}
        means = self._run.workers.mean(means)
        speed = (step - self._reported) / (now - self._last)
        means |= {"steps_per_s": speed, "waiting": self._waiting / (now - self._last)}
        self._last, self._sums, self._steps, self._waiting = now, {}, 0, 0.0
        self._reported = step
        left = (now - self._began) / max(1, step - self._start) * (self._total - step)
        self._write(step, means, f"{left:.0f} s left")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a validation."""
        self._write(step, dict(values), "held out")
        self._last = time.monotonic()

    def end(self) -> None:
        """Write the most memory that this process has had."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mib = most / (2**20 if sys.platform == "darwin" else 2**10)
        self._write(self._total, {"peak_memory_mib": mib}, "done")

    def _write(self, step: int, values: dict[str, float], remark: str) -> None:
        if self._run.workers.rank > 0 or not values:
            return
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{self._name} {step}/{self._total}  {text}  {remark}", flush=True)
        line = json.dumps({"stage": self._name, "step": step, **values})
        with (self._run.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._run.tracker.metrics({f"{self._name}/{k}": v for k, v in values.items()}, step)
