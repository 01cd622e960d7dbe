"""What a request asks for, checked before any of its pixels is copied."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from services.common.parcels import Parcels
from services.common.tensors import from_message
from services.common.wire import restore_options
from services.sampler.budget import Budget
from services.sampler.job import Task
from vlmir.errors import InputError, LimitError, OptionError
from vlmir.image import Limits
from vlmir.image.tiles import Window
from vlmir.sampling import Conditions, DiffusionSampler
from vlmir.v1 import image_pb2, sampler_pb2

__all__ = ["check_size", "task_of"]


def check_size(pixels: image_pb2.Tensor, limits: Limits) -> int:
    """The number of pixels that the message says it has.

    Raises:
        LimitError: They are too many.
    """
    shape = list(pixels.shape)[-2:]
    size = max(0, shape[0] * shape[1]) if len(shape) == 2 else 0
    if size > limits.max_pixels:
        raise LimitError(
            f"The picture has {size} pixels ({shape[1]} × {shape[0]}); at most {limits.max_pixels} are taken. "
            "Scale it down, cut it, or raise the limit."
        )
    return size


def task_of(
    request: sampler_pb2.SampleRequest,
    sampler: DiffusionSampler,
    *,
    max_window: int,
    budget: Budget,
    parcels: Parcels,
) -> Task:
    """The request as a task for ``sampler``.

    Args:
        request: The request.
        sampler: Which is to do it.
        max_window: Most pixels of a tile.
        budget: The memory that it must fit.
        parcels: Fetches pixels that lie in a store.

    Raises:
        InputError: Pixels or conditions are missing, of a wrong shape or type, or no numbers.
        LimitError: There is not enough memory for it, even alone.
        OptionError: An option is unknown or out of range.
        UnavailableError: The pixels cannot be fetched.
    """
    options = restore_options(request.options)
    plan = replace(sampler.plan(options), wide=request.wide)
    conditions = _conditions(request.conditions, sampler.unet.config.context_dim)
    pixels = parcels.receive(request.pixels, shape=(3, None, None), name="pixels")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # so that NaN is refused
        raise InputError(f"pixels must be numbers 0…1, not {low:g}…{high:g}.")
    _, height, width = pixels.shape
    plan = budget.fit(sampler, height, width, plan)
    _check_window(sampler.tile_plan(height, width, plan.tile).windows[0], max_window)
    return Task(sampler=sampler, pixels=pixels, conditions=conditions, seed=options.seed, plan=plan)


def _check_window(window: Window, most: int) -> None:
    """Refuse tiles for which everybody else would have to wait too long."""
    if window.height * window.width > most:
        raise OptionError(
            f"Tiles of {window.width} × {window.height} pixels are too big here; choose a side of at most "
            f"{isqrt(most)}."
        )


def _conditions(message: sampler_pb2.Conditions, width: int) -> Conditions:
    return Conditions(
        _condition(message, "text", width),
        _condition(message, "image", width),
        _condition(message, "degradation", width),
    )


def _condition(message: sampler_pb2.Conditions, name: str, width: int) -> Tensor | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    values = from_message(getattr(message, name), shape=(width,), name=f"conditions.{name}")
    if not np.isfinite(values).all():
        raise InputError(f"conditions.{name} holds values that are no numbers; send finite ones.")
    return torch.from_numpy(values.copy())
