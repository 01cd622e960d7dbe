"""Where the restoring network runs, and in which precision."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from vlmir.errors import OptionError
from vlmir.options import PRECISIONS, Precision

__all__ = ["REFERENCE", "Compute", "multiplies_bf16", "processor_name"]

M = TypeVar("M", bound=nn.Module)

_BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products of bfloat16 are computed by the processor itself.

    Where they are emulated they are no saving: a training step took 18 s instead of 0.9 s with AVX2 alone.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(able.get(unit, False) for unit in _BF16_UNITS)


@dataclass(frozen=True)
class Compute:
    """A device and the type of the network's weights and activations; pictures are float32 around it."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str = "auto", precision: Precision = "auto") -> Compute:
        """What is asked for; ``auto`` takes a GPU where PyTorch finds one, and bfloat16 where that is faster.

        Args:
            device: ``auto``, or a name that PyTorch knows, such as ``cpu``, ``cuda``, ``cuda:1``.
            precision: One of :data:`vlmir.options.PRECISIONS`.

        Raises:
            OptionError: The device is unknown or not there, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise OptionError(
                f"Unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}."
            )
        where = _device(device)
        bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(where))
        return cls(where, torch.bfloat16 if bf16 else torch.float32)

    def place(self, network: M) -> M:
        """Move a network there and into that type, its convolutions with channels last; returns it."""
        network.to(self.device, self.dtype)
        network.to(memory_format=torch.channels_last)
        return network

    def __str__(self) -> str:
        """Such as ``cpu, bfloat16``."""
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}"


REFERENCE = Compute(torch.device("cpu"), torch.float32)
"""What golden numbers and trained weights are in."""


def processor_name() -> str:
    """The processor as its system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built with CUDA
        why = str(error).splitlines()[0].rstrip(".")
        raise OptionError(
            f"The device {name!r} cannot be used ({why}); take auto or cpu."
        ) from error
    return device
