"""What an evaluation of the U-Net costs, against the same network as PyTorch runs it plainly, in float32."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmir.bench.timing import Clock, ceiling_tflops, in_turns, median_ratio
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.config import load_preset
from vlmir.nn import UNet
from vlmir.parts import build_unet

__all__ = ["Networks", "load_networks", "measure_batches", "measure_evaluation"]

T = 100
"""The time index; any does."""


class Networks(NamedTuple):
    """The same weights twice."""

    plain: UNet
    """In float32."""
    chosen: UNet
    """As the sampler runs it."""
    compute: Compute


def load_networks(name: str, compute: Compute) -> Networks:
    """The U-Net of a bundle; or of the preset ``base``, whose weights are random: they cost the same.

    Args:
        name: Of a bundle, or its folder; or ``base``.
        compute: How the sampler runs it.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
    """
    plain = Compute(compute.device, torch.float32)
    if name != "base":
        bundle = load_bundle(name)
        return Networks(build_unet(bundle, plain), build_unet(bundle, compute), compute)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(load_preset(name).sampler.unet).eval()
    other = UNet(unet.config).eval()
    other.load_state_dict(unet.state_dict())
    return Networks(plain.place(unet), compute.place(other), compute)


def measure_evaluation(
    networks: Networks, *, side: int, rounds: int, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """One evaluation of one square picture, both ways in turns.

    Args:
        networks: Both.
        side: Of the picture, pixels.
        rounds: At least 1.
        clock: See :func:`vlmir.bench.timing.in_turns`.

    Returns:
        ``plain_ms`` and ``ms``: medians; ``times_faster``: the median of the rounds' ratios; ``gflop``: operations of
        an evaluation (a multiplication and an addition are two); ``tflops``; ``ceiling_tflops`` of a matrix product in
        the same type, and ``of_ceiling``, the share of it that is reached.
    """
    device = networks.compute.device
    ways = {
        "plain": _call(networks.plain, side, 1),
        "chosen": _call(networks.chosen, side, 1),
    }
    taken = in_turns(ways, rounds=rounds, device=device, clock=clock)
    with FlopCounterMode(display=False) as counter:
        ways["plain"]()
    gflop = counter.get_total_flops() / 1e9
    seconds = statistics.median(taken["chosen"])
    ceiling = ceiling_tflops(networks.compute)
    return {
        "plain_ms": 1e3 * statistics.median(taken["plain"]),
        "ms": 1e3 * seconds,
        "times_faster": median_ratio(taken["plain"], taken["chosen"]),
        "gflop": gflop,
        "tflops": gflop / 1e3 / seconds,
        "ceiling_tflops": ceiling,
        "of_ceiling": gflop / 1e3 / seconds / ceiling,
    }


def measure_batches(
    networks: Networks, *, side: int, batches: Sequence[int], rounds: int
) -> dict[str, float]:
    """Megapixels a second by pictures in a network call, in turns: ``batch 4`` → MP/s."""
    ways = {f"batch {n}": _call(networks.chosen, side, n) for n in batches}
    taken = in_turns(ways, rounds=rounds, device=networks.compute.device)
    return {
        f"batch {n}": n * side**2 / 1e6 / statistics.median(taken[f"batch {n}"]) for n in batches
    }


def _call(unet: UNet, side: int, batch: int) -> Callable[[], Any]:
    """A function that evaluates the network once."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(batch, 3, side, side, generator=generator).to(unet.device)
    mu = pictures.contiguous(memory_format=torch.channels_last)
    t = torch.full((batch,), T, device=unet.device)
    with torch.inference_mode():
        conditioning = unet.prepare(None, None, None, batch)

    @torch.inference_mode()
    def evaluate() -> Any:
        return unet(mu, mu, t, conditioning)

    return evaluate
