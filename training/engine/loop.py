"""The training loop that every stage shares; a stage is a :class:`Task`.

Everything random in a step is a function of the seed and the step's number: batches, noise, dropout. So a run that was
killed and resumed takes the same steps to the last bit, and there is no state of a generator or a loader to save.
"""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.config import LoopConfig
from training.engine.checkpoints import Checkpoints
from training.engine.compute import Compute
from training.engine.log import Log
from training.engine.stop import Stop
from training.engine.tracking import UNTRACKED, Tracker
from training.engine.workers import ALONE, Workers
from vlmir.errors import OptionError

__all__ = ["Run", "Task", "adamw", "cosine_rate", "fit", "seed_of", "set_rate"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how a stage runs."""

    out: Path
    """Folder of its checkpoints and of its log."""
    resume: bool = False
    """Whether to go on from the checkpoints there."""
    seed: int = 0
    """Of everything random."""
    compute: Compute = field(default_factory=Compute)
    workers: Workers = ALONE
    tracker: Tracker = UNTRACKED


class Task(nn.Module, ABC):
    """What one stage trains. Its ``forward`` takes a batch to losses; ``loss`` among them is the one minimised."""

    name: str
    """Of its checkpoints and reports."""
    data: str = ""
    """Fingerprint of the data it draws from; a run is resumed on the same."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What is trained and saved; parameters that need no gradient stay as they are."""

    @abstractmethod
    def draw(self, step: int) -> Any:
        """This worker's part of a step's batch, on the CPU; a function of the step alone."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch: 0-d tensors by name."""

    def after_step(self, step: int) -> None:
        """Called when the model has been updated."""

    def extra_state(self) -> dict[str, Any]:
        """What belongs into a checkpoint beside model and optimizer."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take it back from a checkpoint."""

    def validate(self, step: int, tracker: Tracker) -> dict[str, float]:
        """Numbers on held-out data after ``step`` steps; pictures go to the tracker."""
        return {}


def fit(task: Task, config: LoopConfig, run: Run) -> None:
    """Train a task: from its checkpoint where there is one, to the end or until the process is asked to stop.

    Raises:
        OptionError: The folder holds a run and ``run.resume`` is off, or it is of another seed or other data.
        SystemExit: SIGTERM (status 0) or Ctrl-C (130) came; the state after the last step is saved.
    """
    workers = run.workers
    checkpoints = Checkpoints(run.out / task.name)
    optimizer = adamw(task.model, config)
    state = _restore(task, optimizer, checkpoints, run)
    start = state.get("step", 0)
    if start >= config.steps:
        return
    module = workers.parallel(task)
    log = Log(run, task.name, config, start)
    log.load_state_dict(state.get("log", log.state_dict()))
    task.train()
    with Stop() as stop:
        for step, batch in _prefetched(task, range(start, config.steps), log):
            set_rate(optimizer, cosine_rate(step, config))
            torch.manual_seed(seed_of(run.seed, step, workers.rank))
            losses = module(run.compute.moved(batch))
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            norm = nn.utils.clip_grad_norm_(_trained(task.model), config.clip)
            optimizer.step()
            task.after_step(step)
            done = step + 1
            log.add(losses, norm)
            if done % config.log_every == 0:
                log.report(done)
            if config.validate_every and done % config.validate_every == 0 and workers.rank == 0:
                log.numbers(done, task.validate(done, run.tracker))
            stopping = workers.stopping(done, asked=stop.signal is not None)
            if done % config.save_every == 0 or done == config.steps or stopping:
                _save(task, optimizer, checkpoints, done, run, log)
            if stopping:
                if workers.rank == 0:
                    print(f"stopped after step {done}; --resume goes on from there", flush=True)
                sys.exit(stop.status)
    log.end()


def seed_of(*numbers: int) -> int:
    """A seed for PyTorch's generators that differs wherever one of the numbers does, each at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def cosine_rate(step: int, config: LoopConfig, floor: float = 0.01) -> float:
    """Learning rate at ``step``: linear warm-up to the peak, then a half cosine down to ``floor`` times the peak."""
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def adamw(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) for the parameters that need a gradient; gains and biases are not decayed.

    Never fused: PyTorch 2.14's fused CPU kernel walks weight and gradient in memory order: a channels-last weight whose
    gradient is laid out otherwise gets the updates of other elements, and training crawls without an error.
    """
    trained = _trained(model)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    first, second = config.betas
    return torch.optim.AdamW(groups, lr=config.rate, betas=(first, second), fused=False)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _prefetched(task: Task, steps: Iterable[int], log: Log) -> Iterator[tuple[int, Any]]:
    """(Step, batch) one after the other; while one is computed the next is drawn by a thread."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = None
        for step in steps:
            began = time.monotonic()
            batch = task.draw(step) if upcoming is None else upcoming.result()
            log.waited(time.monotonic() - began)
            upcoming = thread.submit(task.draw, step + 1)
            yield step, batch


def _save(
    task: Task,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    step: int,
    run: Run,
    log: Log,
) -> None:
    if run.workers.rank == 0:
        state = {"model": task.model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"log": log.state_dict(), "begun_with": _begun_with(task, run)}
        checkpoints.save(step, state | task.extra_state())


def _begun_with(task: Task, run: Run) -> dict[str, Any]:
    return {"seed": run.seed, "data": task.data}


def _restore(
    task: Task, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, run: Run
) -> dict[str, Any]:
    """Load the latest checkpoint and return it; nothing where there is none.

    Raises:
        OptionError: It is not to be resumed, or was begun with another seed or other data.
    """
    state = checkpoints.latest()
    if state is None:
        return {}
    if not run.resume:
        raise OptionError(
            f"{checkpoints.folder} holds a run of {state['step']} steps: go on with --resume, or name another --out."
        )
    now, then = _begun_with(task, run), state["begun_with"]
    other = [f"{name} {then[name]!r}, not {now[name]!r}" for name in now if now[name] != then[name]]
    if other:
        raise OptionError(
            f"{checkpoints.folder} holds a run with {' and '.join(other)}: say the same, or name another --out."
        )
    task.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    task.load_extra_state(state)
    return state
