"""The processes of one training run: one, or several that share each batch and average their gradients.

Several are started and watched by Ray Train; between them speaks ``torch.distributed``. A step's batch is the same
however many there are: each worker takes its part of it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.engine.stop import Stop
from vlmir.errors import OptionError, VlmirError

if TYPE_CHECKING:  # it takes seconds to import
    from ray.train.torch import TorchTrainer

__all__ = ["ALONE", "FAULTS", "Workers", "run_in_workers"]

FAULTS = (VlmirError, FileNotFoundError, ValueError)
"""What a stage raises where its user is at fault: told in a line, and never tried again."""

MAX_FAILURES = 3
"""How often lost workers are replaced before the run fails."""

TIMEOUT_S = 24 * 3600
"""How long a worker waits for the others, in seconds: while the first builds a pool or captions it, that is hours."""

LOOK_EVERY = 10
"""Steps after which several workers agree whether they are to stop."""

LEAVE_S = 20.0
"""Seconds that the other workers have to end by themselves when one has told a fault of the user."""


@dataclass(frozen=True)
class Workers:
    """This process among the workers of a run."""

    rank: int = 0
    """Its number, from 0; that one writes files and reports."""
    count: int = 1
    """How many there are."""
    stop_file: Path | None = None
    """The file that asks several workers to stop; None: nothing does."""

    def share(self, batch: int) -> range:
        """The places of a batch that are this worker's.

        Raises:
            OptionError: The batch cannot be shared evenly, so the mean of the workers' losses would not be its mean.
        """
        if batch % self.count:
            raise OptionError(
                f"A batch of {batch} cannot be shared evenly by {self.count} workers."
            )
        return range(self.rank, batch, self.count)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the workers in each backward pass."""
        if self.count == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # Some parameters have no part in the loss: attention to a single token needs no queries and keys.
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the workers."""
        if self.count == 1:
            return dict(values)
        summed = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(summed)
        return dict(zip(values, (summed / self.count).tolist(), strict=True))

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all workers, B×D, gradients included: a contrastive loss needs the whole batch's."""
        if self.count == 1:
            return rows
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(rows))  # type: ignore[no-untyped-call]

    def any(self, asked: bool) -> bool:
        """Whether any worker says yes."""
        return self.mean({"asked": float(asked)})["asked"] > 0

    def stopping(self, step: int, *, asked: bool) -> bool:
        """Whether the run is to stop after ``step`` steps; the same answer in all workers.

        Args:
            step: How many steps are done.
            asked: Whether this process was asked; that counts where it is alone. Several look for ``stop_file`` now
                and then.
        """
        if self.count == 1:
            return asked
        if step % LOOK_EVERY:
            return False
        found = self.rank == 0 and self.stop_file is not None and self.stop_file.exists()
        return self.any(found)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first worker runs the block before the others, so that they find the files that it made.

        Raises:
            SystemExit: In the others, where the first has failed: what it made is not there.
        """
        if self.rank > 0 and self.any(False):
            sys.exit("the first worker has failed")
        failed = True
        try:
            yield
            failed = False
        finally:
            if self.rank == 0:
                self.any(failed)


ALONE = Workers()
"""The only process."""


def run_in_workers(count: int, work: Callable[[Workers], None], storage: Path) -> None:
    """Run ``work`` in ``count`` processes under Ray Train, on a running Ray cluster or a local one.

    Lost workers are replaced and the work begins anew in all of them; it resumes from its last checkpoint, which must
    lie where every worker can read it. Each takes a GPU where there are any, and starts in this process's working
    folder. SIGTERM and Ctrl-C to this process make the workers save and stop.

    Args:
        count: Workers, at least 2.
        work: What each does; it is pickled.
        storage: Folder for Ray Train's own records, where every worker can read it.

    Raises:
        OptionError: A worker told a fault of the user.
        SystemExit: SIGTERM (status 0) or Ctrl-C (130) came, and the workers have stopped.
        ray.train.TrainingFailedError: Workers failed more often than is forgiven.
    """
    storage = storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    stop_file, fault_file = storage / "stop", storage / "fault"
    for file in (stop_file, fault_file):
        file.unlink(missing_ok=True)
    run = _Run(_trainer(count, work, storage).fit)
    with Stop() as stop:
        run.start()
        while run.is_alive():
            run.join(0.5)
            if stop.signal is not None:
                stop_file.touch()
            if fault_file.exists():
                # A worker that is alone at fault leaves the others waiting for it; they end with this process.
                run.join(LEAVE_S)
                break
    stop_file.unlink(missing_ok=True)
    if fault_file.exists():
        raise OptionError(fault_file.read_text("utf-8"))
    if run.error is not None:
        raise run.error
    if stop.signal is not None:
        sys.exit(stop.status)


class _Run(threading.Thread):
    """Ray Train's part of a run: beside the main thread, where it would handle Ctrl-C in its own way."""

    def __init__(self, fit: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._fit = fit
        self.error: Exception | None = None
        """What ended it, or None."""

    def run(self) -> None:
        try:
            self._fit()
        except Exception as error:
            self.error = error


def _trainer(count: int, work: Callable[[Workers], None], storage: Path) -> TorchTrainer:
    """Ray Train for this work, and Ray itself."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path.cwd()
    use_gpu = torch.cuda.is_available()
    _connect(None if use_gpu else count + 1)
    return TorchTrainer(
        lambda: _work(work, folder, storage),
        # What is said between workers is on the CPU; gradients are where the networks are.
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=TIMEOUT_S
        ),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=use_gpu),
        run_config=RunConfig(
            name="workers",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )


def _connect(processors: int | None) -> None:
    """Connect to Ray: as it is where this process has it, else a running cluster, else one of this machine's."""
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(num_cpus=processors, include_dashboard=False)
    except ValueError:  # a cluster is running, and knows its processors itself
        ray.init()


def _work(work: Callable[[Workers], None], folder: Path, storage: Path) -> None:
    """What each worker does; a fault of the user is told to the process that waits for them."""
    os.chdir(folder)  # Ray Train has put it into a folder of its own
    workers = Workers(dist.get_rank(), dist.get_world_size(), storage / "stop")
    try:
        work(workers)
    except SystemExit:
        return  # asked to stop, or the first worker says what it failed of
    except FAULTS as error:
        own = storage / f"fault-{workers.rank}"
        own.write_text(str(error), encoding="utf-8")
        own.replace(storage / "fault")
