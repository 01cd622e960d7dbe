"""What the training computes on and in which precision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmir.compute import multiplies_bf16
from vlmir.options import Precision

__all__ = ["Compute"]


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Compute:
    """A device and the precision of its matrix products; weights, losses and updates stay in float32."""

    precision: Precision = "auto"
    device: torch.device = field(default_factory=_default_device)

    def autocast(self) -> torch.autocast:
        """The context in which the networks run."""
        bf16 = self.precision == "bf16" or (
            self.precision == "auto" and multiplies_bf16(self.device)
        )
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def moved(self, batch: Any) -> Any:
        """A dataclass of tensors, or a tensor, on the device."""
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        tensors = {
            f.name: value.to(self.device, non_blocking=True)
            for f in dataclasses.fields(batch)
            if isinstance(value := getattr(batch, f.name), Tensor)
        }
        return dataclasses.replace(batch, **tensors)
