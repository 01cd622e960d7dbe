"""What the network itself makes of more pictures in a call: its speed, and its operations for each byte moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.services.sampler_tools import NOTHING, picture
from vlmir.bench.network import Networks, measure_batches
from vlmir.bench.timing import ceiling_tflops, in_turns
from vlmir.compute import Compute
from vlmir.sampling import DiffusionSampler, Plan
from vlmir.sweeps import evaluate

__all__ = ["Traffic", "measure_curve", "measure_intensity", "measure_machine"]

_COPIED = 2**26
"""Numbers that are copied to see how fast memory is: more than any cache holds."""


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations read and write, each by itself: what memory moves where no cache keeps anything.

    Args:
        weights: Tensors that are counted apart.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = self.activations = 0
        """Bytes."""
        self._weights = {_place(weight) for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, made = list(_tensors((args, kwargs))), list(_tensors(out))
        places = {_place(tensor) for tensor in read}
        if not func._schema.is_mutable:
            made = [tensor for tensor in made if _place(tensor) not in places]
        for tensor in [*read, *made] if made else []:  # else it is a view: nothing is moved
            size = min(tensor.nbytes, tensor.untyped_storage().nbytes())
            if _place(tensor) in self._weights:
                self.weights += size
            else:
                self.activations += size
        return out


def measure_curve(
    networks: Networks, *, side: int, batches: Sequence[int], rounds: int
) -> dict[str, float]:
    """Pictures a second by pictures in a network call, in turns: ``batch 4`` → images/s."""
    speeds = measure_batches(networks, side=side, batches=batches, rounds=rounds)
    return {name: 1e6 * megapixels / side**2 for name, megapixels in speeds.items()}


def measure_intensity(
    sampler: DiffusionSampler, *, side: int, batches: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Count, of one network call of so many pictures, as the sampler makes it.

    Returns:
        ``batch 4`` and the like → ``gflop``, ``weights_mb``, ``activations_mb``, and ``flop_per_byte`` of both.
    """
    found = dict[str, dict[str, float]]()
    for batch in batches:
        call = _call(sampler, side, batch)
        call()
        with FlopCounterMode(display=False) as counter:
            call()
        with Traffic(list(sampler.unet.parameters())) as traffic:
            call()
        found[f"batch {batch}"] = {
            "gflop": counter.get_total_flops() / 1e9,
            "weights_mb": traffic.weights / 1e6,
            "activations_mb": traffic.activations / 1e6,
            "flop_per_byte": counter.get_total_flops() / (traffic.weights + traffic.activations),
        }
    return found


def measure_machine(compute: Compute) -> dict[str, float]:
    """What a network call can reach at most.

    Returns:
        ``tflops`` of a product of matrices, ``gb_per_s`` of a copy, and their quotient ``flop_per_byte``: a call of
        fewer operations for each byte than this waits for memory.
    """
    source = torch.rand(_COPIED, device=compute.device)
    target = torch.empty_like(source)
    times = in_turns({"copy": lambda: target.copy_(source)}, rounds=5, device=compute.device)
    bandwidth = 2 * source.nbytes / min(times["copy"])
    tflops = ceiling_tflops(compute)
    return {
        "tflops": tflops,
        "gb_per_s": bandwidth / 1e9,
        "flop_per_byte": 1e12 * tflops / bandwidth,
    }


def _call(sampler: DiffusionSampler, side: int, batch: int) -> Callable[[], object]:
    plan = Plan(steps=1, solver=sampler.config.solver, realism=0.0, tile=0)
    evaluations = []
    for seed in range(batch):
        mu = torch.from_numpy(picture(side, side, seed).copy())
        evaluations.append(next(sampler.begin(mu, NOTHING, seed, plan)).take())
    return lambda: evaluate(evaluations)


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
