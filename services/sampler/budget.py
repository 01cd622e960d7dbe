"""The memory that pictures may take: how many of them, and how large a network call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vlmir.memory import MemoryPlanner, free_memory, picture_room
from vlmir.sampling import DiffusionSampler, Plan

__all__ = ["Budget"]

_MESSAGES = 2
"""Copies of a picture in messages: the request's, and one that the answer passes through."""

_WAITING = 3
"""Pixels that wait for each that is under way, in their requests: the batcher admits four times its room."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes beside the weights, None where they are unknown: then there is no limit.

    They are what was free at the start, not now: what other pictures hold comes back, and a request that must wait for
    it is told so by the queue. One that would not even fit alone is refused for good.
    """

    host: int | None
    """Of the process."""
    network: int | None
    """Where the network runs; where that is the host, the same bytes."""
    apart: bool
    """Whether that is a processor with a memory of its own."""
    call_pixels: int
    """Most pixels of a network call, however much memory there is."""

    @classmethod
    def of(cls, device: torch.device, *, call_pixels: int, given: int | None = None) -> Budget:
        """What is free where a network runs and around it.

        Args:
            device: Where it runs.
            call_pixels: Most pixels of a network call.
            given: Bytes there that are taken for free, whatever the system says; None: ask it.
        """
        apart = device.type != "cpu"
        network = free_memory(device) if given is None else given
        host = free_memory(torch.device("cpu")) if apart else network
        return cls(host=host, network=network, apart=apart, call_pixels=call_pixels)

    def room(self, most: int) -> int:
        """Pixels of big pictures that may be under way together, at most ``most``.

        On the host, half of the memory is left to network calls and small pictures.
        """
        if self.host is None:
            return most
        share = self.host if self.apart else self.host // 2
        return min(most, picture_room(share, beside=_MESSAGES + _WAITING))

    def fit(self, sampler: DiffusionSampler, height: int, width: int, plan: Plan) -> Plan:
        """The plan with which a picture fits, had it all the memory; its calls take half of it at most.

        Args:
            sampler: Which is to restore it.
            height: Rows of the picture.
            width: Columns.
            plan: How it is to be restored.

        Raises:
            LimitError: None fits; says what is needed, and what is there.
        """
        planner = MemoryPlanner(sampler, self._free, beside=_MESSAGES)
        call_pixels = self.call_pixels
        if self.network is not None:
            call_pixels = min(call_pixels, planner.call_room(self.network // 2))
        return planner.fit(height, width, replace(plan, call_pixels=call_pixels))

    def _free(self, device: torch.device) -> int | None:
        return self.host if device.type == "cpu" else self.network
