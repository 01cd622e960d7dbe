"""Memory of graphics processors, where this process computes on some."""

from __future__ import annotations

from functools import partial
from typing import Any

from services.common.telemetry.metrics import Metrics

__all__ = ["observe_gpu"]


def observe_gpu(metrics: Metrics, cuda: Any) -> None:
    """Show for each device how much PyTorch uses, holds, and could have; nothing where there is none.

    Args:
        metrics: Where.
        cuda: ``torch.cuda``, from a service that has imported it anyway.
    """
    if not cuda.is_available():
        return
    for device in range(cuda.device_count()):
        total = cuda.get_device_properties(device).total_memory
        which = {"device": str(device)}
        metrics.observe(
            "gpu_memory_allocated_bytes",
            "Bytes in use by tensors.",
            partial(cuda.memory_allocated, device),
            **which,
        )
        metrics.observe(
            "gpu_memory_reserved_bytes",
            "Bytes held, those in use included.",
            partial(cuda.memory_reserved, device),
            **which,
        )
        metrics.observe(
            "gpu_memory_total_bytes",
            "Bytes of the device.",
            partial(float, total),
            **which,
        )
