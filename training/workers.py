"""The processes of one training run: one, or several that share each batch and average their gradients.

Several are started and watched by Ray Train; between them speaks ``torch.distributed``. A step's batch is the same
however many there are: each worker takes its part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlmir.errors import OptionError

__all__ = ["ALONE", "Workers", "run_in_workers"]

MAX_FAILURES = 3
"""How often lost workers are replaced before the run fails."""


@dataclass(frozen=True)
class Workers:
    """This process among the workers of a run."""

    rank: int = 0
    """Its number, from 0; that one writes files and reports."""
    count: int = 1
    """How many there are."""

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

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first worker runs the block before the others, so that they find the files that it made."""
        if self.rank > 0:
            dist.barrier()
        yield
        if self.rank == 0 and self.count > 1:
            dist.barrier()


ALONE = Workers()
"""The only process."""


def run_in_workers(count: int, work: Callable[[Workers], None], storage: Path) -> None:
    """Run ``work`` in ``count`` processes under Ray Train, on a running Ray cluster or a local one.

    Lost workers are replaced and the work begins anew in all of them; it resumes from its last checkpoint, which must
    lie where every worker can read it. Each takes a GPU where there are any.

    Args:
        count: Workers, at least 2.
        work: What each does; it is pickled.
        storage: Folder for Ray Train's own records.

    Raises:
        ray.train.TrainingFailedError: Workers failed more often than is forgiven.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def each() -> None:
        work(Workers(dist.get_rank(), dist.get_world_size()))

    use_gpu = torch.cuda.is_available()
    if not ray.is_initialized():
        ray.init(num_cpus=None if use_gpu else count + 1, include_dashboard=False)
    trainer = TorchTrainer(
        each,
        scaling_config=ScalingConfig(num_workers=count, use_gpu=use_gpu),
        run_config=RunConfig(
            name="workers",
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()
