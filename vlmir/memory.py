"""How much memory a restoration takes, how much there is, and how a picture is cut so that it fits.

What is counted is the peak above the loaded weights: copies of the picture, and what the network keeps of the windows
of one call. Not counted is what a process takes once, with its first picture: about 35 MiB of library code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vlmir.config import UNetConfig
from vlmir.errors import LimitError
from vlmir.nn.attention import LinearAttention
from vlmir.sampling import MIRRORS, DiffusionSampler, Plan
from vlmir.sweeps import padded

__all__ = ["MOST_COPIES", "MemoryPlanner", "Need", "activations", "free_memory", "picture_room"]

SCRATCH = 10 * 2**20
"""Bytes that are taken beside copies and activations: reordered weights, captions and embeddings, small blocks."""

HOLES = 2.9
"""Memory of calls over what is alive in one: glibc keeps blocks of up to 32 MiB, and the layers leave holes in them.

So it is for calls of :data:`LARGE` pixels and more; smaller blocks fit into more of the holes, and the ratio grows as
the root of the pixels. Fitted, with :data:`SCRATCH`, to ``tiny`` in float32 and bfloat16 from 1 to 24 megapixels:
single processes scatter by 8 % (standard deviation), since addresses differ. One call alone takes less, and so does a
network whose blocks are mostly larger, such as ``base``. To have each block given back at once (mallopt) takes a third
of the memory, and twice the time on two processors: every layer then waits for fresh pages.
"""

LARGE = 512 * 512
"""Pixels of a call from which on :data:`HOLES` does not grow."""

SLACK = 1.15
"""Free memory over predicted need from which a picture is taken; the prediction may be so much too low."""

TILES = (384, 256, 128)
"""Sides to fall back on where the preset's tile does not fit; smaller ones would be mostly overlap."""

_PICTURE = 3 * 4
"""Bytes of a pixel in one copy of a picture: three float32."""

MOST_COPIES = 8
"""Copies of a picture that any plan keeps at most, the source included."""

_LOOK = 28
"""Bytes of a pixel while a picture is embedded: the source, its weighted channels and their sum."""

_INPUTS = 2 * 3 * 4
"""Bytes of a window's pixel that the network reads: its state and the low-quality pixels, in float32."""


@dataclass(frozen=True)
class Need:
    """Bytes above the loaded weights at the peak."""

    host: int
    """Of the process."""
    device: int = 0
    """Of the graphics processor; 0 where the network runs on the host."""


class MemoryPlanner:
    """Chooses the tile and the size of the network calls by the memory that is there.

    Args:
        sampler: Which is to restore.
        free: Tells the bytes free on a device, None where that is unknown: then nothing is refused.
        beside: Copies of a picture that the caller keeps meanwhile, beside the source.
    """

    def __init__(
        self,
        sampler: DiffusionSampler,
        free: Callable[[torch.device], int | None] | None = None,
        *,
        beside: int = 0,
    ) -> None:
        self._sampler, self._beside = sampler, beside
        self._free = free or free_memory
        weights = sampler.unet.stem.weight
        self._device, size = weights.device, weights.element_size()
        self._per_pixel = HOLES * (_INPUTS + size * activations(sampler.unet.config))

    def need(self, height: int, width: int, plan: Plan) -> Need:
        """What restoring one picture takes.

        Args:
            height: Rows of the picture.
            width: Columns.
            plan: How it is restored.
        """
        picture = _PICTURE * height * width
        pixels = self._call_pixels(height, width, plan)
        call = round(self._per_pixel * pixels * min(1, math.sqrt(pixels / LARGE))) + SCRATCH
        apart = self._device.type != "cpu"
        # What a call took stays with the process: its holes are of no use to the copies made between two calls.
        copies = round((self._copies(plan) + self._beside) * picture)
        look = _LOOK * height * width
        return Need(max(copies if apart else copies + call, look), call if apart else 0)

    def fit(self, height: int, width: int, plan: Plan) -> Plan:
        """The plan that fits: ``plan`` itself where it does, else one with smaller calls, then with smaller tiles.

        A tile that ``plan`` names is kept.

        Args:
            height: Rows of the picture.
            width: Columns.
            plan: How it is to be restored.

        Raises:
            LimitError: None fits; says what is needed, and what is there.
        """
        free = self._free(torch.device("cpu"))
        free_there = free if self._device.type == "cpu" else self._free(self._device)
        for candidate in self._candidates(height, width, plan):
            need = self.need(height, width, candidate)
            short = _short(need.host, free) or _short(need.device, free_there)
            if not short:
                return candidate
        raise LimitError(
            f"Restoring {width}×{height} pixels needs {short}; {self._way_out(height, width, plan)}."
        )

    def call_room(self, memory: int) -> int:
        """Pixels of a network call that takes so many bytes, at least 1.

        Args:
            memory: Bytes where the network runs.
        """
        pixels = max(0, memory / SLACK - SCRATCH) / self._per_pixel
        return max(1, int(pixels if pixels > LARGE else (pixels**2 * LARGE) ** (1 / 3)))

    def _candidates(self, height: int, width: int, plan: Plan) -> Iterator[Plan]:
        yield plan
        yield replace(plan, call_pixels=1)
        if plan.tile is None:
            tiles = (side for side in TILES if side < self._sampler.config.tile)
            yield from (replace(plan, tile=side, call_pixels=1) for side in tiles)

    def _way_out(self, height: int, width: int, plan: Plan) -> str:
        """What a caller may do about it."""
        smaller = replace(plan, tile=TILES[-1], call_pixels=1)
        least, now = (
            self.need(height, width, one) for one in (smaller, replace(plan, call_pixels=1))
        )
        if plan.tile is not None and least != now:
            return f"choose smaller tiles (at {TILES[-1]}: {_gib(least.host)}) or a smaller picture"
        return "take a smaller picture, or free memory"

    def _call_pixels(self, height: int, width: int, plan: Plan) -> int:
        """Pixels, padding included, of the largest network call."""
        windows = self._sampler.tile_plan(height, width, plan.tile).windows
        first = windows[0]  # none is larger
        rows, columns = padded((first.height, first.width), self._sampler.unet.multiple)
        largest = rows * columns
        # As many mirror images as there may be: a plan is fitted before it is known whether the damage is wide.
        evaluations = len(windows) * (len(MIRRORS) if plan.ensemble else 1)
        return largest * max(1, min(evaluations, plan.call_pixels // largest))

    def _copies(self, plan: Plan) -> float:
        """Copies of the picture alive at most at a time, the source included."""
        most = self._copies_in_full(plan)
        if not plan.wide:
            return most
        # When it is looked at at half the size: source, x̂₀ and a noisy state; then x̂₀ and the picture made smaller,
        # their difference, and one plane of it in full.
        first = 2 + (plan.realism > 0 or self._noisy)
        return max(most, first + 3 / 4 + 1 / 3)

    def _copies_in_full(self, plan: Plan) -> int:
        if plan.realism == 0 and not self._noisy:
            return 2  # source and x̂₀
        if plan.states == 1:
            return 4  # and a noisy state, which is a sum of two
        before = int(plan.solver.startswith("dpmpp_2m"))  # solvers of second order keep the last x̂₀
        # Source, state, x̂₀, next state and a term of it; Euler–Maruyama's step has more terms.
        step = 7 if plan.solver == "euler_maruyama" else 5
        return step + (plan.realism < 1) + 2 * before

    @property
    def _noisy(self) -> bool:
        """Whether the first state has noise in it."""
        return self._sampler.config.prediction != "x0"


def picture_room(memory: int, *, beside: int) -> int:
    """Pixels of pictures that may be under way, by any plan, for which so much memory suffices, at least 1.

    Args:
        memory: Bytes of the host.
        beside: Copies of as many pixels that are kept meanwhile, beside the sources.
    """
    return max(1, int(memory / SLACK / (_PICTURE * (MOST_COPIES + beside))))


def activations(config: UNetConfig) -> float:
    """Numbers that the network holds at its peak, for each pixel of a window.

    They are the skips that are still needed, and the largest set that one layer holds at a time; the walk follows
    :meth:`vlmir.nn.UNet.forward`, and a test compares it with what is really alive.
    """
    return max(_moments(config))


def _moments(config: UNetConfig) -> Iterator[float]:
    """Numbers alive for each pixel of a window, layer by layer."""
    sizes = [config.width, *(config.width * m for m in config.multipliers)]
    levels = range(len(config.multipliers))
    more = config.more_blocks or (0,) * len(levels)
    share = [1 / (config.stem_stride * 2**level) ** 2 for level in levels]
    held = stem = config.width * share[0]
    for level in levels:
        inner, part = sizes[level], share[level]
        held += 2 * inner * part  # its skips, the second of which is being made
        block = max(_block(inner, inner), _attention(config, config.attention[level], inner))
        yield held + (block - inner) * part
    last = sizes[-1]  # the middle's attention runs while its first block's input is still held
    yield held + (last + _attention(config, "transformer", last)) * share[-1]
    for level in reversed(levels):
        inner, outer, part = sizes[level], sizes[level + 1], share[level]
        held -= inner * part
        yield held + (outer + _block(outer + inner, outer)) * part
        held -= inner * part
        # Beyond one block the first one's input stays in the hands of the caller.
        yield held + ((more[level] > 1) * outer + _block(outer, outer)) * part
        yield held + _attention(config, config.attention[level], outer) * part
        if level:
            yield held + outer * part + (outer + inner) * share[level - 1]
    yield stem + (config.width + _block(2 * config.width, config.width)) * share[0]


def _block(channels_in: int, channels_out: int) -> int:
    """Channels that a ResBlock holds: its input, two convolutions' results, their sum, and a projected skip."""
    return channels_in + (3 + (channels_in != channels_out)) * channels_out


def _attention(config: UNetConfig, kind: str, channels: int) -> int:
    """Channels that an attention holds, its input included."""
    if kind == "linear":
        # Input, its norm, queries, keys and values; and a softmax of them, or the result, its norm and the sum.
        inner = LinearAttention.HEADS * LinearAttention.HEAD_DIM
        return 2 * channels + 3 * inner + max(inner, 3 * channels)
    if kind == "transformer":
        # Input, norms, and the gated layer: eight times the channels, the gate and the product four times each.
        return (4 + config.self_attention + 16) * channels
    return channels


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device: of a graphics processor as it says; of the host, what system and container leave."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_host_memory()


def free_host_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take; None where the system does not tell.

    Args:
        root: Holds ``proc`` and ``sys``.
    """
    available = _available(root / "proc/meminfo")
    if available is None:
        available = _physical()
    rooms = [room for room in (available, *_rooms(root)) if room is not None]
    return max(0, min(rooms)) if rooms else None


def _available(meminfo: Path) -> int | None:
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _physical() -> int | None:
    """Unused pages, where the system has no better number."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _rooms(root: Path) -> Iterator[int]:
    """What the control groups of this process leave, each with those around it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _climb(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
            yield from _climb(root / "sys/fs/cgroup/memory", path, *files)


def _climb(mount: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[int]:
    """Room in a group and in each around it; in a container the outer ones, and its own path, may not be visible."""
    own = mount / path.strip("/")
    for folder in (own, *own.parents):
        if not folder.is_relative_to(mount):
            return
        most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
        if most.isdigit() and used.isdigit():  # "max" means none
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            # Pages of files that were read are given up before anything is refused.
            yield int(most) - int(used) + int(stat.get(f"{prefix}inactive_file", 0))


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""


def _short(need: int, free: int | None) -> str:
    """What is lacking, "" where it is enough."""
    if free is None or need * SLACK <= free:
        return ""
    return f"{_gib(need)}, and {_gib(free)} are free"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
