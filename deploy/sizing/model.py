"""The model: what a second of load asks of each part, how many of it that takes, and which is full first.

A part needs fractions of one replica: of its computing, its network, its requests. It gets as many replicas as keep the
greatest of these at the wanted utilisation, and one more that may fail. All needs but the registry's are linear in the
load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from deploy.sizing.costs import Costs, Networks, load_costs, networks
from vlmir.config import Preset, load_preset
from vlmir.image.tiles import plan_tiles
from vlmir.options import SAMPLE_STEPS

__all__ = ["HARDWARE", "QUALITIES", "Load", "Part", "Sizing", "evaluations", "size"]

QUALITIES = ("default", "ensemble", "realism")
HARDWARE = ("cpu", "l4", "l40s", "a100", "h100", "h200")

_MIRRORS = 4
_FLOATS = 12
"""Bytes of a pixel between restorer and sampler: three float32."""
_ALIGN = 16
_TENSORS_ABOVE_MB = 32 * 2**20 / 1e6
"""VLMIR_STORE_TENSORS_ABOVE: arrays of more travel by way of the store."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the system.

    Raises:
        ValueError: A number is not positive, or the utilisation is above 1.
    """

    images_per_s: float
    megapixels: float = 1.0
    quality: str = "default"
    bundle: str = "tiny"
    hardware: str = "cpu"
    """Of sampler and embedder; one of `HARDWARE`."""
    utilisation: float = 0.6
    """How busy a replica may be on average."""
    s_per_megapixel: float | None = None
    """Seconds of one unit of the hardware for an evaluation of a million pixels; None: that of the file."""

    def __post_init__(self) -> None:
        numbers = (self.images_per_s, self.megapixels, self.utilisation, self.s_per_megapixel or 1)
        if not all(0 < number < math.inf for number in numbers) or self.utilisation > 1:
            raise ValueError("load and costs must be positive, the utilisation from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the system."""

    name: str
    needs: Mapping[str, float]
    """Resource → how many replicas' worth of it are asked for."""
    replicas: int

    @property
    def tightest(self) -> str:
        """The resource that decides."""
        return max(self.needs, key=lambda name: self.needs[name])

    @property
    def use(self) -> float:
        """Share of the tightest resource in use, 0 … 1, the spare replica included."""
        return self.needs[self.tightest] / self.replicas


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A system that carries a load."""

    load: Load
    parts: tuple[Part, ...]
    measured: bool
    """Whether the sampler's cost was measured on such hardware, here or by you; else it is an estimate."""
    windows: int
    """Tiles of a picture."""
    batch_pixels: int
    """VLMIR_BATCH_PIXELS for the sampler: what a network call of half a second evaluates, in whole windows, as far as
    memory goes."""
    user_mb_per_s: tuple[float, float]
    """In and out of the gateway."""
    store_mb_per_s: tuple[float, float]
    """In and out of MinIO."""
    store_puts_per_s: float
    stored_tb: float
    """Results in MinIO once the oldest expire."""
    inner_mb_per_s: float
    """Between restorer and sampler, both ways together."""
    walls: tuple[str, ...]
    """What more replicas do not mend."""

    def __getitem__(self, name: str) -> Part:
        """A part by its name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def bottleneck(self) -> Part:
        """The part that is full first when the load grows and nothing is added."""
        return max(self.parts, key=lambda part: part.use)

    @property
    def room(self) -> float:
        """By what factor the load may grow until then."""
        return 1 / self.bottleneck.use


def evaluations(bundle: str, quality: str) -> int:
    """Network evaluations of a picture, mirror images counted.

    Raises:
        ValueError: There is no such quality.
    """
    steps = _preset(bundle).sampler.steps
    try:
        return {"default": steps, "ensemble": _MIRRORS * steps, "realism": SAMPLE_STEPS}[quality]
    except KeyError:
        raise ValueError(
            f"unknown quality {quality!r}; choose from {', '.join(QUALITIES)}"
        ) from None


def size(load: Load) -> Sizing:
    """Size the system for a load."""
    costs, nets = load_costs(), networks(load.bundle, load.hardware)
    windows, evaluated_mp = _tiles(load)
    rate, file_mb = load.images_per_s, costs.transport["file_mb_per_megapixel"] * load.megapixels
    floats_mb = _FLOATS * load.megapixels
    by_store = floats_mb > _TENSORS_ABOVE_MB
    per_mp = load.s_per_megapixel or nets.network_s_per_megapixel
    work_s = evaluations(load.bundle, load.quality) * evaluated_mp * per_mp
    # A result, its record, a claim; a big array on its way there and back.
    puts = 3 + 2 * by_store
    gets = 3 + 2 * by_store
    store_in, store_out = file_mb + 2 * floats_mb * by_store, 2 * floats_mb * by_store
    store_in, store_out = rate * store_in, rate * store_out
    parts = [
        *_front(load, costs, rate, file_mb),
        *_stages(load, costs, nets, rate, work_s, floats_mb),
        _part(
            "minio",
            load,
            {
                "network": (store_in + store_out) / costs.store["mb_per_s"],
                "requests": rate * (puts + gets + 1) / costs.store["requests_per_s"],
            },
        ),
    ]
    parts.append(_registry(load, costs, parts))
    stored_tb = rate * file_mb * costs.store["keep_days"] * 86400 / 1e6
    return Sizing(
        load=load,
        parts=tuple(parts),
        measured=nets.measured or load.s_per_megapixel is not None,
        windows=windows,
        batch_pixels=_batch_pixels(load, costs, per_mp, round(1e6 * evaluated_mp / windows)),
        user_mb_per_s=(rate * file_mb, rate * file_mb),
        store_mb_per_s=(store_in, store_out),
        store_puts_per_s=rate * puts,
        stored_tb=stored_tb,
        inner_mb_per_s=2 * rate * floats_mb,
        walls=tuple(_walls(costs, parts, stored_tb)),
    )


def _tiles(load: Load) -> tuple[int, float]:
    """Windows of a picture of three by four, and megapixels that the network evaluates of them."""
    config = _preset(load.bundle).sampler
    height = max(1, round(math.sqrt(0.75e6 * load.megapixels)))
    width = max(1, round(1e6 * load.megapixels / height))
    plan = plan_tiles(height, width, tile=config.tile, overlap=config.overlap, align=_ALIGN)
    pixels = sum(_padded(window.height) * _padded(window.width) for window in plan.windows)
    return len(plan.windows), pixels / 1e6


def _padded(side: int) -> int:
    """What the network computes with."""
    return -(-side // _ALIGN) * _ALIGN


@cache
def _preset(bundle: str) -> Preset:
    return load_preset(bundle)


def _front(load: Load, costs: Costs, rate: float, file_mb: float) -> list[Part]:
    transport, link = costs.transport, costs.replica["network_mb_per_s"]
    passed_mb = 2 * file_mb  # in and out
    pixels_s = sum(
        transport[f"{act}_s_per_megapixel"] * load.megapixels
        for act in ("decode", "encode", "pass")
    )
    gateway_s = transport["gateway_s_per_call"] + passed_mb * transport["gateway_s_per_mb"]
    proxy_s = transport["proxy_s_per_call"] + passed_mb * transport["proxy_s_per_mb"]
    way_mb = passed_mb + 2 * _FLOATS * load.megapixels
    return [
        _part("gateway", load, {"computing": rate * gateway_s, "network": rate * passed_mb / link}),
        _part("ray node", load, {"computing": rate * proxy_s, "network": rate * way_mb / link}),
        _part("restorer", load, {"computing": rate * pixels_s}),
    ]


def _stages(
    load: Load, costs: Costs, nets: Networks, rate: float, work_s: float, floats_mb: float
) -> list[Part]:
    replica, on_processors = costs.replica, load.hardware == "cpu"
    several = replica["efficiency"] if on_processors else 1.0
    large = replica["processors"] * several if on_processors else 1.0
    pair = replica["processors_small"] * replica["efficiency"]
    small = pair if on_processors else 1.0
    link = replica["network_mb_per_s" if on_processors else "graphics_network_mb_per_s"]
    return [
        _part("captioner", load, {"computing": rate * nets.caption_s / pair}),
        _part("embedder", load, {"computing": rate * nets.embed_s / small}),
        _part(
            "sampler",
            load,
            {"computing": rate * work_s / large, "network": rate * 2 * floats_mb / link},
        ),
    ]


def _registry(load: Load, costs: Costs, parts: list[Part]) -> Part:
    """MLflow is asked by every process that follows the alias, whatever it has to do."""
    followers = sum(part.replicas for part in parts if part.name in _FOLLOWERS)
    looks = followers * costs.registry["look_s"] / costs.registry["poll_s"]
    return _part("mlflow", load, {"computing": looks})


_FOLLOWERS = ("captioner", "embedder", "sampler")


def _part(name: str, load: Load, needs: Mapping[str, float]) -> Part:
    replicas = math.ceil(max(needs.values()) / load.utilisation) + 1
    return Part(name=name, needs=needs, replicas=replicas)


def _batch_pixels(load: Load, costs: Costs, per_mp: float, window: int) -> int:
    replica, on_processors = costs.replica, load.hardware == "cpu"
    several = replica["processors"] * replica["efficiency"] if on_processors else 1.0
    most = min(replica["call_s"] * several / per_mp, replica["batch_megapixels"])
    return max(1, int(1e6 * most) // window) * window


def _walls(costs: Costs, parts: list[Part], stored_tb: float) -> list[str]:
    nodes = next(part.replicas for part in parts if part.name == "ray node")
    cells = math.ceil(nodes / costs.walls["ray_nodes"])
    found = []
    if cells > 1:
        found.append(f"{nodes} Ray nodes: split into {cells} clusters behind one name")
    if stored_tb > 1000 * costs.walls["store_pb"]:
        found.append(f"{stored_tb / 1000:.0f} PB of results: keep them for fewer days")
    return found
