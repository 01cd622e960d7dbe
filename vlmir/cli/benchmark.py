"""``vlmir bench``: how fast this machine, or a server, restores."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vlmir.cli.arguments import BENCHMARKS
from vlmir.cli.engines import connect
from vlmir.errors import OptionError

__all__ = ["bench"]

Numbers = Mapping[str, Any]

_SIDE = 256
_BATCHES = (1, 2, 4, 8)


def bench(arguments: Namespace) -> int:
    """Measure, print each number when it is there, and write all of them; returns 0, since a failure raises.

    Raises:
        OptionError: The arguments contradict each other, or the device cannot be used.
        BundleError: There is no such bundle.
        VlmirError: A server failed.
    """
    if arguments.server and (arguments.only or arguments.device or arguments.precision):
        raise OptionError(
            "With --server, it computes as it was set up; leave --only, --device and --precision."
        )
    results: dict[str, Any] = {"about": _about()}
    print(", ".join(f"{name} {value}" for name, value in results["about"].items()), flush=True)
    for name, measure in _on_server(arguments) if arguments.server else _here(arguments):
        print(f"\n{name}", flush=True)
        results[name] = measure()
        print("\n".join(_lines(results[name])), flush=True)
        if arguments.json:
            _write(results, arguments.json)
    return 0


def _here(arguments: Namespace) -> Iterator[tuple[str, Callable[[], Numbers]]]:
    from vlmir.bench import (
        load_networks,
        measure_batches,
        measure_evaluation,
        measure_growth,
        measure_reference,
        measure_restoring,
        measure_start,
    )
    from vlmir.compute import Compute

    bundle, rounds = arguments.bundle, arguments.rounds
    where: dict[str, Any] = {
        "device": arguments.device or "auto",
        "precision": arguments.precision or "auto",
    }
    compute = Compute.choose(**where)
    in_all: dict[str, Callable[[], Numbers]] = {
        "network": lambda: measure_evaluation(
            load_networks(bundle, compute), side=_SIDE, rounds=rounds
        ),
        "base": lambda: measure_evaluation(
            load_networks("base", compute), side=_SIDE, rounds=rounds
        ),
        "batches": lambda: measure_batches(
            load_networks(bundle, compute), side=_SIDE, batches=_BATCHES, rounds=rounds
        ),
        "restoring": partial(measure_restoring, bundle, **where, rounds=rounds),
        "growth": partial(measure_growth, bundle, **where, rounds=rounds),
        "reference": partial(measure_reference, bundle, **where),
        "start": partial(measure_start, bundle, **where, rounds=rounds),
    }
    titles = {
        "network": f"one evaluation of {bundle}, {_SIDE}², {compute}, against plain float32",
        "base": f"one evaluation of base, {_SIDE}², {compute}, against plain float32",
        "batches": f"megapixels a second by pictures in a network call, {_SIDE}²",
        "restoring": "a picture restored, captions and embeddings included",
        "growth": "a picture restored, by its size",
        "reference": f"the published procedure against the default, {_SIDE}²",
        "start": "a new process",
    }
    for name in arguments.only or BENCHMARKS:
        yield titles[name], in_all[name]


def _on_server(arguments: Namespace) -> Iterator[tuple[str, Callable[[], Numbers]]]:
    from vlmir.bench import measure_service

    yield (
        f"{arguments.server} by clients at once, {_SIDE}²",
        partial(
            measure_service,
            partial(connect, arguments),
            side=_SIDE,
            requests=arguments.requests,
        ),
    )


def _about() -> dict[str, Any]:
    import torch

    from vlmir import __version__
    from vlmir.compute import processor_name

    return {
        "vlmir": __version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _lines(numbers: Numbers) -> Iterator[str]:
    width = max(map(len, numbers))
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            row = "  ".join(f"{key} {_shown(one)}" for key, one in value.items())
        else:
            row = _shown(value)
        yield f"  {name:<{width}}  {row}"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _write(results: Mapping[str, Any], file: Path) -> None:
    try:
        file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"Cannot write {file}: {error.strerror}.") from error
