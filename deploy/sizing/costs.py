"""The figures of ``costs.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Costs", "Networks", "load_costs", "networks"]

FILE = Path(__file__).with_name("costs.toml")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Seconds of one unit of hardware, a processor or a graphics processor; of a processor for captions."""

    network_s_per_megapixel: float
    """One evaluation of a million pixels."""
    caption_s: float
    """One caption."""
    embed_s: float
    """One picture and its caption."""
    measured: bool
    """False: an estimate."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything but the networks; as in the file."""

    transport: Mapping[str, float]
    replica: Mapping[str, float]
    store: Mapping[str, float]
    registry: Mapping[str, float]
    walls: Mapping[str, float]
    sources: Mapping[str, str]


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text("utf-8"))


def load_costs() -> Costs:
    """The figures that do not depend on weights and hardware."""
    found = _file()
    groups = ("transport", "replica", "store", "registry", "walls")
    return Costs(
        **{name: {k: v for k, v in found[name].items() if k != "source"} for name in groups},
        sources={name: group["source"] for name, group in found.items() if "source" in group},
    )


def networks(bundle: str, hardware: str) -> Networks:
    """What the networks cost.

    Args:
        bundle: ``tiny`` or ``base``.
        hardware: ``cpu``, or the name of a graphics processor in the file.

    Raises:
        KeyError: There are no figures for it.
    """
    found = _file()
    if hardware == "cpu":
        return Networks(**found["processor"][bundle], measured=bundle == "tiny")
    graphics, operations = found["graphics"], found["operations"][bundle]
    gflops = 1000 * graphics["peak_tflops"][hardware]
    small, least = gflops * graphics["small_utilisation"], graphics["least_s"]
    return Networks(
        network_s_per_megapixel=operations["network_gflop_per_megapixel"]
        / (gflops * graphics["utilisation"]),
        caption_s=found["processor"][bundle]["caption_s"],
        embed_s=max(least, operations["embed_gflop"] / small),
        measured=False,
    )
